//! FUSE's first message. The library's passthrough answers it, too, but asks for nothing that only concerns how much one message
//! carries: a guest's kernel would write 4 KiB at a time, and wait for each piece that it reads ahead.
//!
//! Source: Linux `include/uapi/linux/fuse.h`, `struct fuse_init_in`, `struct fuse_init_out`.

use std::io;

use fuse_backend_rs::abi::fuse_abi::{FsOptions, KERNEL_MINOR_VERSION, KERNEL_VERSION};
use fuse_backend_rs::api::filesystem::FileSystem;

/// `FUSE_INIT`.
const OPCODE: u32 = 26;
/// The longest that is read or written at once. Shape: pages of 4 KiB; 1 MiB in all.
const MOST_PAGES: u16 = 256;
const MOST_BYTES: u32 = MOST_PAGES as u32 * 4096;
/// How many requests the guest has under way that nobody waits for, and from when on it goes slow: the library's numbers.
const BACKGROUND: u16 = u16::MAX;
const CONGESTED: u16 = u16::MAX / 4 * 3;

/// What is answered to such a message of our major version; to anything else the library answers.
pub fn answer<F: FileSystem>(files: &F, request: &[u8]) -> Option<Vec<u8>> {
    let [opcode, major, readahead, flags] = [4, 40, 48, 52].map(|place| word(request, place));
    if opcode? != OPCODE || major? != KERNEL_VERSION {
        return None;
    }
    let unique = request.get(8..16)?;
    // Its upper half is left out: it has nothing that is done here.
    let offered = FsOptions::from_bits_truncate(u64::from(flags?)) - FsOptions::INIT_EXT;
    let content = match files.init(offered) {
        Ok(wanted) => {
            let larger = FsOptions::BIG_WRITES | FsOptions::MAX_PAGES | FsOptions::ASYNC_READ;
            accepted(offered & (wanted | larger), readahead?)
        }
        Err(error) => return Some(message(unique, -error_number(&error), &[])),
    };
    Some(message(unique, 0, &content))
}

fn accepted(options: FsOptions, readahead: u32) -> Vec<u8> {
    // All of them are in the lower half.
    let flags = u32::try_from(options.bits()).unwrap_or(0);
    let mut content = Vec::with_capacity(64);
    for word in [KERNEL_VERSION, KERNEL_MINOR_VERSION, readahead, flags] {
        content.extend(word.to_le_bytes());
    }
    content.extend(BACKGROUND.to_le_bytes());
    content.extend(CONGESTED.to_le_bytes());
    content.extend(MOST_BYTES.to_le_bytes());
    // Times are exact to a nanosecond.
    content.extend(1_u32.to_le_bytes());
    content.extend(MOST_PAGES.to_le_bytes());
    content.resize(64, 0);
    content
}

/// Shape: length, error, number, content. Source: `struct fuse_out_header`.
fn message(unique: &[u8], error: i32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + content.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], &error.to_le_bytes(), unique, content].concat()
}

fn error_number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn word(request: &[u8], place: usize) -> Option<u32> {
    request.get(place..)?.first_chunk().copied().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wants one option, or cannot begin.
    struct Files(Option<FsOptions>);

    impl FileSystem for Files {
        type Inode = u64;
        type Handle = u64;

        fn init(&self, _: FsOptions) -> io::Result<FsOptions> {
            self.0.ok_or_else(|| io::Error::from_raw_os_error(libc::EACCES))
        }
    }

    fn request(opcode: u32, major: u32, flags: FsOptions) -> Vec<u8> {
        let flags = u32::try_from(flags.bits()).unwrap();
        let mut bytes = [56_u32, opcode].map(u32::to_le_bytes).concat();
        bytes.extend(7_u64.to_le_bytes());
        bytes.resize(40, 0);
        bytes.extend([major, 37, 131_072, flags].map(u32::to_le_bytes).concat());
        bytes
    }

    #[test]
    fn as_much_as_possible_goes_into_one_message_if_the_kernel_offers_it() {
        let files = Files(Some(FsOptions::DO_READDIRPLUS | FsOptions::WRITEBACK_CACHE));
        let offered = FsOptions::DO_READDIRPLUS | FsOptions::BIG_WRITES | FsOptions::MAX_PAGES | FsOptions::INIT_EXT;
        let answer = answer(&files, &request(26, 7, offered)).unwrap();
        assert_eq!((answer.len(), word(&answer, 0), word(&answer, 4)), (80, Some(80), Some(0)));
        assert_eq!(
            (&answer[8..16], word(&answer, 16), word(&answer, 24)),
            (&7_u64.to_le_bytes()[..], Some(7), Some(131_072))
        );
        let chosen = FsOptions::DO_READDIRPLUS | FsOptions::BIG_WRITES | FsOptions::MAX_PAGES;
        assert_eq!(word(&answer, 28).map(u64::from), Some(chosen.bits()));
        assert_eq!((word(&answer, 36), word(&answer, 44)), (Some(1 << 20), Some(256)));
    }

    #[test]
    fn what_is_no_greeting_of_our_version_is_the_librarys() {
        let files = Files(Some(FsOptions::empty()));
        assert!(answer(&files, &request(26, 8, FsOptions::empty())).is_none());
        assert!(answer(&files, &request(1, 7, FsOptions::empty())).is_none());
        assert!(answer(&files, &request(26, 7, FsOptions::empty())[..54]).is_none());
    }

    #[test]
    fn a_folder_that_cannot_be_opened_is_an_error() {
        let answer = answer(&Files(None), &request(26, 7, FsOptions::empty())).unwrap();
        assert_eq!(answer, message(&7_u64.to_le_bytes(), -libc::EACCES, &[]));
    }
}
