//! Root file systems from EROFS layers. Needs mkfs.erofs (Debian's package erofs-utils).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_container::rootfs::{LayerSource, RootfsError, Upper, mount};

use crate::Case;
use crate::fixture::Fixture;

pub const CASES: &[Case] = &[
    ("layers_are_joined_in_order", layers_are_joined_in_order),
    ("a_hundred_layers_are_joined", a_hundred_layers_are_joined),
    ("a_block_device_is_a_layer_too", a_block_device_is_a_layer_too),
    ("a_failure_undoes_everything", a_failure_undoes_everything),
    ("a_container_runs_on_layers", a_container_runs_on_layers),
];

struct Layers {
    folder: tempfile::TempDir,
}

impl Layers {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes an EROFS file from what `fill` puts into a folder.
    fn layer(&self, name: &str, fill: impl Fn(&Path)) -> LayerSource {
        let (tree, file) = (self.path(&format!("tree-{name}")), self.path(&format!("{name}.erofs")));
        fs::create_dir_all(&tree).unwrap();
        fill(&tree);
        let made =
            Command::new("mkfs.erofs").arg("--quiet").arg(&file).arg(&tree).output().expect("mkfs.erofs is needed");
        assert!(made.status.success(), "{made:?}");
        LayerSource::File(file)
    }

    fn writable(&self) -> Upper {
        let upper = Upper { upper: self.path("upper"), work: self.path("work") };
        for path in [&upper.upper, &upper.work, &self.path("merged")] {
            fs::create_dir_all(path).unwrap();
        }
        upper
    }

    /// Lines of the mount table that name this folder.
    fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let name = self.folder.path().display().to_string();
        table.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect()
    }
}

fn layers_are_joined_in_order() {
    let layers = Layers::new();
    let lower = layers.layer("lower", |tree| {
        fs::write(tree.join("same"), "lower").unwrap();
        fs::write(tree.join("gone"), "lower").unwrap();
        fs::write(tree.join("kept"), "lower").unwrap();
    });
    let upper = layers.layer("upper", |tree| {
        fs::write(tree.join("same"), "upper").unwrap();
        // overlayfs' whiteout.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            tree.join("gone"),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
            0,
        )
        .unwrap();
    });
    let writable = layers.writable();
    let merged = layers.path("merged");
    let root = mount(&[lower.clone(), upper.clone()], &layers.path("staging"), &writable, &merged).unwrap();
    assert_eq!(root.path(), merged);
    assert_eq!(fs::read_to_string(merged.join("same")).unwrap(), "upper");
    assert_eq!(fs::read_to_string(merged.join("kept")).unwrap(), "lower");
    assert!(!merged.join("gone").exists());
    fs::write(merged.join("new"), "changed").unwrap();
    assert_eq!(layers.mounts().len(), 1, "only the whole stays mounted: {:?}", layers.mounts());
    assert!(!layers.path("staging").exists());
    root.unmount().unwrap();
    assert_eq!(layers.mounts(), [] as [String; 0]);
    assert_eq!(fs::read_to_string(writable.upper.join("new")).unwrap(), "changed");

    // The changes are there again, and a dropped guard unmounts.
    let root = mount(&[lower, upper], &layers.path("staging"), &writable, &merged).unwrap();
    assert_eq!(fs::read_to_string(merged.join("new")).unwrap(), "changed");
    drop(root);
    assert_eq!(layers.mounts(), [] as [String; 0]);
}

fn a_hundred_layers_are_joined() {
    let layers = Layers::new();
    // A long path with the signs that overlayfs takes for its own.
    let deep = layers.path("a:b,c\\d").join("x".repeat(120));
    let sources: Vec<LayerSource> = (0..127)
        .map(|number| {
            layers.layer(&number.to_string(), |tree| {
                fs::write(tree.join(format!("from-{number}")), "").unwrap();
                fs::write(tree.join("same"), number.to_string()).unwrap();
            })
        })
        .collect();
    fs::create_dir_all(deep.join("merged")).unwrap();
    let writable = Upper { upper: deep.join("u"), work: deep.join("w") };
    fs::create_dir_all(&writable.upper).unwrap();
    fs::create_dir_all(&writable.work).unwrap();
    let merged = deep.join("merged");
    let root = mount(&sources, &deep.join("staging"), &writable, &merged).unwrap();
    assert_eq!(fs::read_to_string(merged.join("same")).unwrap(), "126");
    assert_eq!(fs::read_dir(&merged).unwrap().count(), 128);
    fs::write(merged.join("new"), "").unwrap();
    assert!(writable.upper.join("new").exists());
    root.unmount().unwrap();
    assert_eq!(layers.mounts(), [] as [String; 0]);
}

fn a_block_device_is_a_layer_too() {
    let layers = Layers::new();
    let LayerSource::File(file) = layers.layer("one", |tree| fs::write(tree.join("here"), "yes").unwrap()) else {
        unreachable!()
    };
    let made = Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(&file).output().unwrap();
    if !made.status.success() {
        eprintln!("SKIPPED: no loop device: {}", String::from_utf8_lossy(&made.stderr));
        return;
    }
    let device = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
    let merged = layers.path("merged");
    let root = mount(&[LayerSource::Device(device.clone())], &layers.path("s"), &layers.writable(), &merged);
    let content = fs::read_to_string(merged.join("here"));
    drop(root.unwrap());
    assert!(Command::new("losetup").arg("--detach").arg(&device).status().unwrap().success());
    assert_eq!(content.unwrap(), "yes");
}

fn a_failure_undoes_everything() {
    let layers = Layers::new();
    let good = layers.layer("good", |tree| fs::write(tree.join("x"), "").unwrap());
    fs::write(layers.path("bad.erofs"), vec![7; 8192]).unwrap();
    let bad = LayerSource::File(layers.path("bad.erofs"));
    let gone = LayerSource::File(layers.path("gone.erofs"));
    let writable = layers.writable();
    for wrong in [bad, gone] {
        let error =
            mount(&[good.clone(), wrong], &layers.path("staging"), &writable, &layers.path("merged")).unwrap_err();
        assert!(matches!(error, RootfsError::Layer { .. }), "{error}");
        assert_eq!(layers.mounts(), [] as [String; 0]);
        assert!(!layers.path("staging").exists());
    }
    let nowhere = mount(&[good], &layers.path("staging"), &writable, &layers.path("nowhere")).unwrap_err();
    assert!(matches!(nowhere, RootfsError::Join { .. }), "{nowhere}");
    assert_eq!(layers.mounts(), [] as [String; 0]);
}

fn a_container_runs_on_layers() {
    let mut fixture = Fixture::new("echo hello > /written; cat /etc/passwd | wc -l; ls -d /bin/link");
    let layers = Layers::new();
    let tree = fixture.rootfs();
    symlink("/bin/busybox", tree.join("bin/link")).unwrap();
    let file = layers.path("root.erofs");
    assert!(Command::new("mkfs.erofs").arg("--quiet").arg(&file).arg(&tree).status().unwrap().success());
    let writable = layers.writable();
    let merged = layers.path("merged");
    let root = mount(&[LayerSource::File(file)], &layers.path("staging"), &writable, &merged).unwrap();
    fixture.set("/root/path", serde_json::json!(merged));
    assert_eq!(fixture.output(), "2\n/bin/link\n");
    root.unmount().unwrap();
    assert_eq!(fs::read_to_string(writable.upper.join("written")).unwrap(), "hello\n");
}
