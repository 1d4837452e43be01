use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroup, PosixRlimitBuilder, ProcessBuilder,
    RootBuilder, SpecBuilder, UserBuilder,
};

use super::*;

fn limits(capabilities: u64) -> HostLimits {
    HostLimits { capabilities, oom_score_adj: 0, hard_limit: |_| Some(1000) }
}

fn spec(process: Process, resources: Option<LinuxResources>) -> Spec {
    let mut linux = LinuxBuilder::default().build().unwrap();
    linux.set_resources(resources);
    SpecBuilder::default()
        .root(RootBuilder::default().path("rootfs").build().unwrap())
        .process(process)
        .linux(linux)
        .build()
        .unwrap()
}

fn bundle() -> tempfile::TempDir {
    let bundle = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(bundle.path().join("rootfs/etc")).unwrap();
    std::fs::write(bundle.path().join("rootfs/etc/passwd"), "app:x:7:8::/home/app:/bin/sh\n").unwrap();
    std::fs::write(bundle.path().join("rootfs/etc/group"), "audio:x:29:app\n").unwrap();
    bundle
}

fn prepared(spec: Spec, bundle: &Path) -> Result<Spec, PrepareError> {
    prepare(spec, &Surroundings { id: "c1", bundle, terminal: false, limits: limits(u64::MAX) })
}

#[test]
fn names_become_numbers_and_folders_are_made() {
    let bundle = bundle();
    let process = ProcessBuilder::default().cwd("/srv/here").build().unwrap();
    let mut wanted = spec(process, None);
    wanted.set_annotations(Some(
        [(USER_ANNOTATION, "app"), (GROUPS_ANNOTATION, "audio,44")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
    ));
    let spec = prepared(wanted, bundle.path()).unwrap();
    let process = spec.process().as_ref().unwrap();
    let user = process.user();
    assert_eq!((user.uid(), user.gid()), (7, 8));
    assert_eq!(user.additional_gids().as_deref(), Some(&[8, 29, 44][..]));
    assert!(process.env().as_ref().unwrap().contains(&"HOME=/home/app".to_owned()));
    assert!(bundle.path().join("rootfs/srv/here").is_dir());
    assert!(spec.root().as_ref().unwrap().path().is_absolute());
    assert_eq!(spec.linux().as_ref().unwrap().cgroups_path().as_deref(), Some(Path::new("/bulkhead/c1")));
}

#[test]
fn devices_are_denied_unless_allowed() {
    let rule = |allow: bool, major: Option<i64>| {
        let mut rule: LinuxDeviceCgroup = LinuxDeviceCgroupBuilder::default().allow(allow).build().unwrap();
        rule.set_major(major);
        rule
    };
    let bundle = bundle();
    for (given, denied_first) in [
        (None, true),
        (Some(vec![]), true),
        (Some(vec![rule(true, Some(1))]), true),
        (Some(vec![rule(true, None)]), false),
        (Some(vec![rule(false, None), rule(true, Some(1))]), true),
    ] {
        let mut resources = LinuxResources::default();
        resources.set_devices(given.clone());
        let spec = prepared(spec(Process::default(), Some(resources)), bundle.path()).unwrap();
        let rules = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().devices().clone().unwrap();
        assert_eq!(!rules[0].allow() && rules[0].major().is_none(), denied_first, "{given:?}");
    }
}

#[test]
fn a_cgroup_path_never_leaves_its_place() {
    for bad in ["/", "", "..", "/a/../..", "/a/../b", "system.slice:docker:abc", "."] {
        assert!(plain_cgroup_path(Path::new(bad)).is_err(), "{bad:?}");
    }
    assert_eq!(plain_cgroup_path(Path::new("a//b/.")).unwrap(), Path::new("/a/b"));
}

#[test]
fn what_the_host_has_not_got_is_taken_back() {
    let wanted = [Capability::Chown, Capability::SysResource];
    let capabilities = LinuxCapabilitiesBuilder::default().bounding(wanted).effective(wanted).build().unwrap();
    let rlimit = |typ| PosixRlimitBuilder::default().typ(typ).hard(5000_u64).soft(4000_u64).build().unwrap();
    let mut process = ProcessBuilder::default()
        .capabilities(capabilities)
        .oom_score_adj(-500)
        .no_new_privileges(false)
        .rlimits(vec![rlimit(PosixRlimitType::RlimitNofile)])
        .build()
        .unwrap();
    let mut rich = process.clone();

    adjust_process(&mut process, &limits(1)).unwrap();
    assert_eq!(process.oom_score_adj(), None);
    assert_eq!(process.no_new_privileges(), None);
    let limit = process.rlimits().as_ref().unwrap()[0];
    assert_eq!((limit.hard(), limit.soft()), (1000, 1000));
    let kept = process.capabilities().clone().unwrap();
    assert_eq!(kept.bounding().clone().unwrap(), [Capability::Chown].into());

    adjust_process(&mut rich, &limits(u64::MAX)).unwrap();
    assert_eq!(rich.oom_score_adj(), Some(-500));
    assert_eq!(rich.rlimits().as_ref().unwrap()[0].hard(), 5000);
    assert_eq!(rich.capabilities().clone().unwrap().bounding().clone().unwrap().len(), 2);
}

#[test]
fn bad_specifications_are_refused() {
    let bundle = bundle();
    let mut no_mounts = spec(Process::default(), None);
    no_mounts.linux_mut().as_mut().unwrap().set_namespaces(Some(Vec::new()));
    assert!(matches!(prepared(no_mounts, bundle.path()), Err(PrepareError::Spec(SpecError::Unsupported(_)))));

    let relative = ProcessBuilder::default().cwd("proc/self/fd/7").build().unwrap();
    assert!(matches!(prepared(spec(relative, None), bundle.path()), Err(PrepareError::Spec(SpecError::Invalid(_)))));

    let nul = ProcessBuilder::default().args(vec!["a\0b".to_owned()]).build().unwrap();
    assert!(matches!(prepared(spec(nul, None), bundle.path()), Err(PrepareError::Spec(SpecError::Invalid(_)))));

    let nobody = UserBuilder::default().username("nosuch").build().unwrap();
    let nobody = ProcessBuilder::default().user(nobody).build().unwrap();
    assert!(matches!(prepared(spec(nobody, None), bundle.path()), Err(PrepareError::User(UserError::NoUser(_)))));

    let mut rootless = spec(Process::default(), None);
    rootless.set_root(Some(RootBuilder::default().path("gone").build().unwrap()));
    assert!(matches!(prepared(rootless, bundle.path()), Err(PrepareError::Spec(SpecError::Root { .. }))));
}

#[test]
fn ids_are_mapped_out_of_a_user_namespace() {
    use oci_spec::runtime::LinuxIdMappingBuilder;
    let mapping = |inside: u32, outside: u32, size: u32| {
        LinuxIdMappingBuilder::default().container_id(inside).host_id(outside).size(size).build().unwrap()
    };
    let mappings = vec![mapping(0, 100_000, 1000), mapping(1000, 5, 1)];
    assert_eq!(host_id(33, Some(&mappings)), 100_033);
    assert_eq!(host_id(1000, Some(&mappings)), 5);
    assert_eq!(host_id(4000, Some(&mappings)), 4000);
    assert_eq!(host_id(33, None), 33);
}
