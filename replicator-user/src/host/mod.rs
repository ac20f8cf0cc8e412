//! The host as its kernel tells it: interfaces, addresses, routes, neighbors.
