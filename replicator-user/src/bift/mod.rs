//! From tables as users write them to the values of the maps.
