//! Tests against a registry in this process.
