//! The steps by which a container's network is made, any of which a test can have refused.
//!
//! A step is a call of [`step`]: one request to the kernel, or one transaction of `nft`. In an ordinary build it is nothing. In a build
//! with the feature `failpoints`, which only the tests make, the file that `BULKHEAD_NETWORK_FAILPOINT` names says what is to come:
//! `fail 3`, and the third step from now is refused; `die 3`, and the process kills itself before it. Then the file is gone. Engine and
//! shims share it, so that steps are counted through both.

use crate::error::NetworkError;

/// Comes to a step. Shape: `what` is what would be done, as an error says it.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) fn step(_what: &str) -> Result<(), NetworkError> {
    Ok(())
}

/// Comes to a step. Shape: `what` is what would be done, as an error says it.
#[cfg(feature = "failpoints")]
pub(crate) fn step(what: &str) -> Result<(), NetworkError> {
    match armed::next() {
        Some(armed::Fault::Refuse) => {
            Err(NetworkError::kernel(what)(std::io::Error::other("a test refuses this step")))
        }
        Some(armed::Fault::Die) => {
            // Nothing may run on, not even other threads' destructors.
            let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            unreachable!("the process killed itself before it could {what}: {killed:?}");
        }
        None => Ok(()),
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::path::Path;

    use rustix::fs::{FlockOperation, flock};

    #[derive(Debug, PartialEq, Eq)]
    pub(super) enum Fault {
        Refuse,
        Die,
    }

    pub(super) fn next() -> Option<Fault> {
        count_down(Path::new(&std::env::var_os("BULKHEAD_NETWORK_FAILPOINT")?))
    }

    /// A file that is not there, or says something else, wants nothing.
    fn count_down(path: &Path) -> Option<Fault> {
        let mut file = File::options().read(true).write(true).open(path).ok()?;
        flock(&file, FlockOperation::LockExclusive).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let (word, left) = text.trim().split_once(' ')?;
        let fault = match word {
            "fail" => Fault::Refuse,
            "die" => Fault::Die,
            _ => return None,
        };
        let left: usize = left.parse().ok()?;
        // Whoever waited for the lock finds a file that is empty.
        file.set_len(0).and_then(|()| file.rewind()).ok()?;
        if left > 1 {
            write!(file, "{word} {}", left - 1).ok()?;
            return None;
        }
        std::fs::remove_file(path).ok()?;
        Some(fault)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fault_comes_once_at_the_step_that_was_asked_for() {
            let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            std::fs::write(&file, "fail 3\n").unwrap();
            let came: Vec<_> = (0..5).map(|_| count_down(&file)).collect();
            assert_eq!(came, [None, None, Some(Fault::Refuse), None, None]);
            assert!(!file.exists());
            std::fs::write(&file, "die 1").unwrap();
            assert_eq!(count_down(&file), Some(Fault::Die));
        }
    }
}
