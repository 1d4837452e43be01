//! Users and groups by name, from a container's own `/etc/passwd` and `/etc/group`.
//!
//! Source: Docker's `--user`, as `GetExecUser` of moby's `user` package resolves it.

use std::io;
use std::path::Path;

use proto::ErrorKind;

use crate::rootpath::Root;

/// A user that a container does not know.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Neither a number nor in `/etc/passwd`.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// Neither a number nor in `/etc/group`.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// Not a number that the kernel takes.
    #[error("uids and gids must be in range 0-2147483647")]
    OutOfRange,
    /// The file is there, and cannot be used.
    #[error("cannot read the container's {file}")]
    Unreadable {
        /// Its path in the container.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl UserError {
    /// What a caller can act on. A missing user is an invalid argument: [`ErrorKind::NotFound`] would speak of the command.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user_id: u32,
    pub group_id: u32,
    /// The groups from `/etc/group` that list the user; empty when a group was asked for.
    pub groups: Vec<u32>,
    pub home: String,
}

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";
/// Longest file read, bytes.
const FILE_LIMIT: u64 = 8 << 20;
/// Largest id, as Docker has it.
const LARGEST_ID: u32 = i32::MAX.unsigned_abs();

/// The two files of a container.
pub struct Accounts {
    passwd: String,
    group: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    user_id: u32,
    group_id: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    group_id: u32,
    members: &'a str,
}

impl Accounts {
    /// Reads the files; one that is missing is empty.
    pub fn read(root: &Root) -> Result<Self, UserError> {
        let read = |file: &'static str| {
            let bytes = root.read(Path::new(file), FILE_LIMIT);
            bytes
                .map(|bytes| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
                .map_err(|source| UserError::Unreadable { file, source })
        };
        Ok(Self { passwd: read(PASSWD)?, group: read(GROUP)? })
    }

    /// Resolves `user`, `user:group`, `uid`, `uid:gid` and mixes; nothing is user 0.
    pub fn resolve(&self, text: &str) -> Result<Identity, UserError> {
        let (user, group) = text.split_once(':').map_or((text, ""), |(user, group)| (user, group));
        let user = if user.is_empty() { "0" } else { user };
        let number = parse_id(user)?;
        let entry = self.users().find(|entry| entry.name == user || number == Some(entry.user_id));
        let mut identity = match (&entry, number) {
            (Some(entry), _) => Identity {
                user_id: entry.user_id,
                group_id: entry.group_id,
                groups: Vec::new(),
                home: entry.home.to_owned(),
            },
            (None, Some(user_id)) => Identity { user_id, group_id: 0, groups: Vec::new(), home: String::new() },
            (None, None) => return Err(UserError::NoUser(user.to_owned())),
        };
        if !group.is_empty() {
            identity.group_id = self.group_id(group)?;
        } else if let Some(entry) = entry {
            let is_member = |group: &GroupEntry<'_>| group.members.split(',').any(|member| member == entry.name);
            identity.groups = self.groups().filter(is_member).map(|group| group.group_id).collect();
        }
        if identity.home.is_empty() {
            "/".clone_into(&mut identity.home);
        }
        Ok(identity)
    }

    /// The id of a group given by name or number.
    pub fn group_id(&self, group: &str) -> Result<u32, UserError> {
        let number = parse_id(group)?;
        let entry = self.groups().find(|entry| entry.name == group || number == Some(entry.group_id));
        entry.map(|entry| entry.group_id).or(number).ok_or_else(|| UserError::NoGroup(group.to_owned()))
    }

    /// The home folder of a user, `/` if it has none.
    pub fn home(&self, user_id: u32) -> String {
        let entry = self.users().find(|entry| entry.user_id == user_id && !entry.home.is_empty());
        entry.map_or("/", |entry| entry.home).to_owned()
    }

    fn users(&self) -> impl Iterator<Item = PasswdEntry<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
            let user_id = fields.nth(1)?.parse().ok()?;
            let group_id = fields.next()?.parse().ok()?;
            Some(PasswdEntry { name, user_id, group_id, home: fields.nth(1).unwrap_or("") })
        })
    }

    fn groups(&self) -> impl Iterator<Item = GroupEntry<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
            let group_id = fields.nth(1)?.parse().ok()?;
            Some(GroupEntry { name, group_id, members: fields.next().unwrap_or("") })
        })
    }
}

/// A number in range, or `None` for a name.
fn parse_id(text: &str) -> Result<Option<u32>, UserError> {
    match text.parse::<i64>() {
        Ok(number) => match u32::try_from(number) {
            Ok(id) if id <= LARGEST_ID => Ok(Some(id)),
            _ => Err(UserError::OutOfRange),
        },
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nbad:x:nine:1::/:\n\
                     web:x:33:33:web:/var/www:/bin/sh\napp:x:1000:1001::/home/app:\nnohome:x:7:7\n1000:x:5:5::/five:"
                .into(),
            group: "root:x:0:root\nwheel:x:10:root,app\nweb:x:33:\nstaff:x:50:app,web\nodd:x:many:app".into(),
        }
    }

    #[test]
    fn users_are_resolved_as_docker_does() {
        let cases: [(&str, u32, u32, &[u32], &str); 11] = [
            ("", 0, 0, &[0, 10], "/root"),
            ("root", 0, 0, &[0, 10], "/root"),
            ("0", 0, 0, &[0, 10], "/root"),
            ("web", 33, 33, &[50], "/var/www"),
            ("web:wheel", 33, 10, &[], "/var/www"),
            ("web:4711", 33, 4711, &[], "/var/www"),
            // The first entry that fits by name or by number.
            ("1000", 1000, 1001, &[10, 50], "/home/app"),
            ("app", 1000, 1001, &[10, 50], "/home/app"),
            ("4242", 4242, 0, &[], "/"),
            ("4242:staff", 4242, 50, &[], "/"),
            ("nohome", 7, 7, &[], "/"),
        ];
        for (text, user_id, group_id, groups, home) in cases {
            let expected = Identity { user_id, group_id, groups: groups.to_vec(), home: home.into() };
            assert_eq!(accounts().resolve(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_unknown_is_named() {
        let text = |user: &str| accounts().resolve(user).unwrap_err().to_string();
        assert_eq!(text("nosuch"), "unable to find user nosuch: no matching entries in passwd file");
        assert_eq!(text("web:nosuch"), "unable to find group nosuch: no matching entries in group file");
        assert_eq!(text("bad"), "unable to find user bad: no matching entries in passwd file");
        for out in ["-1", "4294967296", "2147483648", "0:-1"] {
            assert_eq!(text(out), "uids and gids must be in range 0-2147483647", "{out}");
        }
    }

    #[test]
    fn homes_are_found_by_number() {
        assert_eq!(accounts().home(33), "/var/www");
        assert_eq!(accounts().home(7), "/");
        assert_eq!(accounts().home(99), "/");
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic_or_root(passwd in ".{0,200}", group in ".{0,200}", user in "[a-z]{1,8}") {
            let accounts = Accounts { passwd, group };
            if let Ok(identity) = accounts.resolve(&user) {
                prop_assert!(accounts.users().any(|entry| entry.name == user && entry.user_id == identity.user_id));
            }
        }
    }
}
