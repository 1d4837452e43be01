//! Every volume of an engine, by name.
//!
//! ```text
//!   <data root>/volumes/NAME/_data          the content: whatever containers have written
//!                       NAME/volume.json    the record
//!                       NAME/copying        there while an image's content is copied into the volume
//!                       .new-NAME           one that is being made; renamed when it is whole
//!                       .gone-NUMBER        one that is being removed
//! ```
//!
//! A rename is what makes and what removes a volume, so an engine that is killed leaves whole ones only, and rubbish, whose
//! names begin with a dot, which the next engine removes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::failpoint;
use proto::ContainerId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::options::{Backing, release};
use crate::clock::Timestamp;
use crate::error::{ApiError, ApiResult};

/// The content's folder in a volume's.
const DATA: &str = "_data";
const RECORD: &str = "volume.json";
const COPYING: &str = "copying";
/// Label of a volume that nobody gave a name. Source: moby `volume/service`, `AnonymousLabel`.
pub const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";
/// Version of the record's form.
const FORMAT: u32 = 1;
/// Most characters of a name: it is the name of a folder.
const MOST_CHARACTERS: usize = 240;

/// What is kept of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    created: Timestamp,
    /// As the client sent them; absent when it sent none.
    labels: Option<BTreeMap<String, String>>,
    options: Option<BTreeMap<String, String>>,
}

/// What a client wants of a new volume.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Wanted {
    /// Its name; without one a random name is drawn.
    #[serde(default)]
    pub name: Option<String>,
    /// `local`, or nothing.
    #[serde(default)]
    pub driver: Option<String>,
    /// The driver's options.
    #[serde(default)]
    pub driver_opts: Option<BTreeMap<String, String>>,
    /// The client's own.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

/// One volume.
#[derive(Debug)]
pub struct Volume {
    /// Its name.
    pub name: String,
    dir: PathBuf,
    record: Record,
    backing: Option<Backing>,
    /// Held while an image's content is copied into it.
    pub copying: Mutex<()>,
    /// Containers that are being made with it.
    leases: AtomicUsize,
    /// Who needs what its options mount. Held while something is mounted on its content's folder, or unmounted.
    users: Mutex<BTreeSet<User>>,
}

/// Who needs what a volume's options mount.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum User {
    /// A container that runs, or is about to.
    Container(ContainerId),
    /// The copy of an image's content; there is one at a time.
    Copy,
}

/// A volume whose content is where it belongs while an image's content is copied into it.
pub struct MountedForCopy<'v>(&'v Volume);

impl Drop for MountedForCopy<'_> {
    fn drop(&mut self) {
        self.0.settle_after(|users| users.remove(&User::Copy));
    }
}

impl Volume {
    fn new(name: String, dir: PathBuf, record: Record, backing: Option<Backing>) -> Self {
        let (copying, leases, users) = (Mutex::default(), AtomicUsize::new(0), Mutex::default());
        Self { name, dir, record, backing, copying, leases, users }
    }

    fn users(&self) -> MutexGuard<'_, BTreeSet<User>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder with its content.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join(DATA)
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.record.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// As the API shows it.
    #[must_use]
    pub fn view(&self) -> Value {
        json!({
            "CreatedAt": Timestamp(self.record.created.seconds() * 1_000_000_000).to_rfc3339_nano(),
            "Driver": "local",
            "Labels": self.record.labels,
            "Mountpoint": self.data(),
            "Name": self.name,
            "Options": self.record.options,
            "Scope": "local",
        })
    }

    /// Makes its content be where it belongs for a container: what its options name is mounted. May be repeated.
    ///
    /// # Errors
    /// 500, in dockerd's words; the container does not use it then.
    pub fn mount(&self, user: &ContainerId) -> ApiResult<()> {
        self.mount_for(User::Container(user.clone()))
    }

    /// As [`Volume::mount`], while an image's content is copied into it. When: [`Volume::copying`] is held.
    ///
    /// # Errors
    /// As [`Volume::mount`].
    pub fn mount_for_copy(&self) -> ApiResult<MountedForCopy<'_>> {
        self.mount_for(User::Copy).map(|()| MountedForCopy(self))
    }

    fn mount_for(&self, user: User) -> ApiResult<()> {
        let Some(backing) = &self.backing else { return Ok(()) };
        let mut users = self.users();
        backing.mount(&self.data()).map_err(ApiError::internal)?;
        users.insert(user);
        Ok(())
    }

    /// Takes up a container that an earlier engine has mounted it for.
    pub fn adopt(&self, user: &ContainerId) {
        if self.backing.is_some() {
            self.users().insert(User::Container(user.clone()));
        }
    }

    /// A container does not use it any more. What is mounted goes with the last one.
    pub fn unmount(&self, user: &ContainerId) {
        let user = User::Container(user.clone());
        self.settle_after(|users| users.remove(&user));
    }

    /// Lets go of what an earlier engine has mounted for a container that does not run.
    pub fn settle(&self) {
        self.settle_after(|_| false);
    }

    fn settle_after(&self, change: impl FnOnce(&mut BTreeSet<User>) -> bool) {
        if self.backing.is_none() {
            return;
        }
        let mut users = self.users();
        change(&mut users);
        if users.is_empty()
            && let Err(error) = release(&self.data())
        {
            tracing::warn!(volume = self.name, %error, "a volume stays mounted");
        }
    }

    /// The content is what a copy that broke off has left.
    #[must_use]
    pub fn is_half_copied(&self) -> bool {
        self.dir.join(COPYING).exists()
    }

    /// Notes that a copy begins, or that it has ended well.
    ///
    /// # Errors
    /// 500.
    pub fn note_copying(&self, copying: bool) -> ApiResult<()> {
        let mark = self.dir.join(COPYING);
        let noted = if copying { File::create(mark).map(drop) } else { fs::remove_file(mark) };
        noted.map_err(|error| ApiError::caused(format!("cannot prepare volume {}", self.name), &error))
    }
}

/// A volume that a container is being made with: it is not removed meanwhile.
#[derive(Debug)]
pub struct VolumeLease(pub Arc<Volume>);

impl Drop for VolumeLease {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The volumes.
pub struct VolumeStore {
    root: PathBuf,
    known: Mutex<BTreeMap<String, Arc<Volume>>>,
    removals: AtomicUsize,
}

impl VolumeStore {
    /// Opens the folder of volumes, and clears away what an engine that was killed has left.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o701).create(&root)?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                remove_tree(&entry.path());
            } else if entry.path().join(DATA).is_dir() && check_name(&name).is_ok() {
                known.insert(name.clone(), Arc::new(read(name, entry.path())));
            }
        }
        Ok(Self { root, known: Mutex::new(known), removals: AtomicUsize::new(0) })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Volume>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every volume, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Volume>> {
        self.known().values().cloned().collect()
    }

    /// One volume.
    ///
    /// # Errors
    /// 404.
    pub fn find(&self, name: &str) -> ApiResult<Arc<Volume>> {
        let missing = || ApiError::not_found(format!("get {name}: no such volume"));
        self.known().get(name).cloned().ok_or_else(missing)
    }

    /// The volume of this name for a container that is being made; made if it is not there. True when it was made.
    ///
    /// When: in a thread that may wait.
    ///
    /// # Errors
    /// 400 for a wrong name or option, 404 for another driver, 500 when it cannot be made.
    pub fn create(&self, wanted: Wanted) -> ApiResult<(VolumeLease, bool)> {
        let (name, mut labels) = (wanted.name.filter(|name| !name.is_empty()), wanted.labels);
        let name = match name {
            Some(name) => name,
            None => {
                labels.get_or_insert_default().insert(ANONYMOUS_LABEL.into(), String::new());
                random_name()?
            }
        };
        let failed = |error: ApiError| error.context(format!("create {name}"));
        let driver = wanted.driver.unwrap_or_default();
        if !matches!(driver.as_str(), "" | "local") {
            let text = format!("error looking up volume plugin {driver}: plugin {driver:?} not found");
            return Err(failed(ApiError::not_found(text)));
        }
        let mut known = self.known();
        if let Some(volume) = known.get(&name) {
            return Ok((lease(volume), false));
        }
        check_name(&name).map_err(|text| failed(ApiError::invalid(text)))?;
        let options = wanted.driver_opts.filter(|options| !options.is_empty());
        let backing = Backing::parse(&options.clone().unwrap_or_default());
        let backing = backing.map_err(|text| failed(ApiError::invalid(text)))?;
        let record = Record { format: FORMAT, created: Timestamp::now(), labels, options };
        let dir = self.make(&name, &record).map_err(|error| failed(ApiError::caused("cannot make it", &error)))?;
        let volume = Arc::new(Volume::new(name.clone(), dir, record, backing));
        known.insert(name, Arc::clone(&volume));
        Ok((lease(&volume), true))
    }

    fn make(&self, name: &str, record: &Record) -> io::Result<PathBuf> {
        let (new, dir) = (self.root.join(format!(".new-{name}")), self.root.join(name));
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        fs::DirBuilder::new().mode(0o701).create(&new)?;
        failpoint::reach("volume.folder");
        fs::DirBuilder::new().mode(0o755).create(new.join(DATA))?;
        // Not what the process' mask makes of it.
        fs::set_permissions(new.join(DATA), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut file = File::create(new.join(RECORD))?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        failpoint::reach("volume.recorded");
        fs::rename(&new, &dir)?;
        File::open(&self.root)?.sync_all()?;
        failpoint::reach("volume.made");
        Ok(dir)
    }

    /// Removes a volume that nobody uses. Shape: `users` gives the containers that use one.
    ///
    /// When: in a thread that may wait.
    ///
    /// # Errors
    /// 404; 409 when it is in use; 500 when it cannot be removed.
    pub fn remove(&self, name: &str, users: impl FnOnce(&str) -> Vec<String>) -> ApiResult<()> {
        let mut known = self.known();
        let volume = known.get(name).ok_or_else(|| ApiError::not_found(format!("get {name}: no such volume")))?;
        let users = users(name);
        if !users.is_empty() || volume.leases.load(Ordering::SeqCst) > 0 {
            let users = users.join(", ");
            return Err(ApiError::conflict(format!("remove {name}: volume is in use - [{users}]")));
        }
        let failed = |error: io::Error| ApiError::caused(format!("remove {name}"), &error);
        release(&volume.data()).map_err(failed)?;
        let number = self.removals.fetch_add(1, Ordering::Relaxed);
        let gone = self.root.join(format!(".gone-{number}"));
        failpoint::reach("volume.rm-begin");
        fs::rename(&volume.dir, &gone).map_err(failed)?;
        failpoint::reach("volume.rm-renamed");
        known.remove(name);
        drop(known);
        remove_tree(&gone);
        Ok(())
    }
}

fn random_name() -> ApiResult<String> {
    let mut bytes = [0; 32];
    let drawn = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    drawn.map_err(|error| ApiError::caused("cannot draw a name", &io::Error::from(error)))?;
    Ok(hex::encode(bytes))
}

fn lease(volume: &Arc<Volume>) -> VolumeLease {
    volume.leases.fetch_add(1, Ordering::SeqCst);
    VolumeLease(Arc::clone(volume))
}

/// A volume whose record cannot be read has no labels and no options, and still its content.
fn read(name: String, dir: PathBuf) -> Volume {
    let record = fs::read(dir.join(RECORD)).map_err(|error| error.to_string()).and_then(|text| {
        let record: Record = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        if record.format > FORMAT {
            Err(format!("its form {} is newer than {FORMAT}", record.format))
        } else {
            Ok(record)
        }
    });
    let record = record.unwrap_or_else(|error| {
        tracing::warn!(volume = name, error, "a volume's record cannot be read; its content is there");
        Record { format: FORMAT, created: made_at(&dir), labels: None, options: None }
    });
    let backing = Backing::parse(&record.options.clone().unwrap_or_default()).unwrap_or_else(|error| {
        tracing::warn!(volume = name, error, "a volume's options are not understood");
        None
    });
    Volume::new(name, dir, record, backing)
}

fn made_at(dir: &Path) -> Timestamp {
    let modified = fs::metadata(dir).and_then(|facts| facts.modified()).ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or_default())
}

fn remove_tree(dir: &Path) {
    if let Err(error) = release(&dir.join(DATA)).and_then(|()| fs::remove_dir_all(dir)) {
        tracing::warn!(dir = %dir.display(), %error, "what is left of a volume cannot be removed");
    }
}

/// Source: moby `volume/local`, `validateName`.
fn check_name(name: &str) -> Result<(), String> {
    if name.len() == 1 {
        return Err("volume name is too short, names should be at least two alphanumeric characters".into());
    }
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !first || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        return Err(format!(
            "{name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
        ));
    }
    if name.len() > MOST_CHARACTERS {
        return Err(format!("volume name is too long, names should be at most {MOST_CHARACTERS} characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Wanted {
        Wanted { name: Some(name.into()), ..Wanted::default() }
    }

    fn nobody(_: &str) -> Vec<String> {
        Vec::new()
    }

    #[test]
    fn a_volume_is_there_again_for_the_next_engine_and_rubbish_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volumes");
        let store = VolumeStore::open(root.clone()).unwrap();
        let labels = Some([("a".to_owned(), "b".to_owned())].into());
        let (made, new) = store.create(Wanted { labels, ..named("data") }).unwrap();
        assert!(new && !store.create(named("data")).unwrap().1);
        fs::write(made.0.data().join("file"), "x").unwrap();
        fs::create_dir_all(root.join(".new-other/_data")).unwrap();
        fs::create_dir_all(root.join(".gone-0/_data")).unwrap();
        drop((made, store));
        let store = VolumeStore::open(root.clone()).unwrap();
        let volume = store.find("data").unwrap();
        assert_eq!((volume.label("a"), fs::read(volume.data().join("file")).unwrap()), (Some("b"), b"x".to_vec()));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
        fs::write(root.join("data/volume.json"), "{").unwrap();
        let store = VolumeStore::open(root).unwrap();
        assert_eq!(store.find("data").unwrap().label("a"), None);
    }

    #[test]
    fn what_is_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = VolumeStore::open(dir.path().join("volumes")).unwrap();
        let (lease, _) = store.create(named("v1")).unwrap();
        assert_eq!(store.remove("v1", nobody).unwrap_err().http_status(), 409);
        drop(lease);
        let error = store.remove("v1", |_| vec!["c1".into(), "c2".into()]).unwrap_err();
        assert_eq!(error.message, "remove v1: volume is in use - [c1, c2]");
        store.remove("v1", nobody).unwrap();
        assert_eq!(store.remove("v1", nobody).unwrap_err().message, "get v1: no such volume");
        assert_eq!(fs::read_dir(dir.path().join("volumes")).unwrap().count(), 0);
    }

    #[test]
    fn names_and_drivers_are_refused_in_dockerds_words() {
        let dir = tempfile::tempdir().unwrap();
        let store = VolumeStore::open(dir.path().join("volumes")).unwrap();
        let refused = |wanted: Wanted| {
            let error = store.create(wanted).map(drop).unwrap_err();
            (error.http_status().as_u16(), error.message)
        };
        assert_eq!(refused(named("a")).0, 400);
        for bad in ["a/b", "../x", ".hidden", "-x", "a b", "é1"] {
            assert!(refused(named(bad)).1.starts_with(&format!("create {bad}: {bad:?} includes invalid")), "{bad}");
        }
        assert_eq!(refused(named(&"x".repeat(300))).0, 400);
        let (status, text) = refused(Wanted { driver: Some("foo".into()), ..named("v2") });
        assert_eq!(
            (status, text.as_str()),
            (404, "create v2: error looking up volume plugin foo: plugin \"foo\" not found")
        );
        let (lease, _) = store.create(Wanted::default()).unwrap();
        assert_eq!((lease.0.name.len(), lease.0.label(ANONYMOUS_LABEL)), (64, Some("")));
    }
}
