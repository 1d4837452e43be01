//! A stream between a program of the host and a hyperv container without a network: how a container asks for it, and where it is.

/// The annotation by which a container asks for a vsock: `true`. It names no path of the host, since whoever writes annotations need
/// not be the host's administrator.
pub const VSOCK_ANNOTATION: &str = "dev.bulkhead.vsock";
/// The socket in the container's bundle that the host's programs connect to. Beside it, with `_` and the port behind its name, are
/// those that they listen on.
pub const VSOCK_SOCKET: &str = "vsock.sock";

/// True if a container with this value of [`VSOCK_ANNOTATION`] asks for a vsock.
///
/// # Errors
/// What is wrong with the value.
pub fn asks_for_vsock(annotation: Option<&str>) -> Result<bool, String> {
    match annotation {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(format!("annotation {VSOCK_ANNOTATION}: {other:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vsock_is_asked_for_in_one_word() {
        assert_eq!([None, Some("false"), Some("true")].map(asks_for_vsock), [Ok(false), Ok(false), Ok(true)]);
        for other in ["", "yes", "True", "/run/x.sock"] {
            assert!(asks_for_vsock(Some(other)).is_err_and(|error| error.contains(VSOCK_ANNOTATION)), "{other}");
        }
    }
}
