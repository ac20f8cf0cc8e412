//! The laboratory: hosts in network namespaces of this machine, links between them, a daemon in one of them.
