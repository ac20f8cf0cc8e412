//! For programs that send to sets of experts and receive from them.
