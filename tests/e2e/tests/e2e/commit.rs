//! An image from a container: `docker commit`, and what bounds a container's changes.

use std::io::Read;

use bulkhead_e2e::{TestHost, Wall};
use serde_json::Value;

/// A program's file capability as Linux keeps it: version 2, effective, `cap_net_raw`.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A file `capable` with a file capability and an attribute of its own.
fn capable() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let records = [("SCHILY.xattr.security.capability", CAPABILITY), ("SCHILY.xattr.user.mine", b"a\nvalue")];
    builder.append_pax_extensions(records).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("capable").unwrap();
    header.set_mode(0o755);
    header.set_uid(7);
    header.set_gid(8);
    header.set_size(4);
    header.set_cksum();
    builder.append(&header, &b"test"[..]).unwrap();
    builder.into_inner().unwrap()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Containers of the image behind each wall that this host has.
fn run_everywhere(host: &TestHost, image: &str, script: &str) -> Vec<String> {
    let walls: &[&[&str]] = match (host.is_reference(), host.wall()) {
        (true, _) => &[&[]],
        (false, Wall::Process) => &[&["--isolation", "process"]],
        (false, Wall::Hyperv) => &[&["--isolation", "process"], &["--isolation", "hyperv"]],
    };
    let run = |wall: &&[&str]| {
        let words = [&["run", "--rm", "--network", "none"], *wall, &[image, "sh", "-c", script]].concat();
        host.docker(&words).ok()
    };
    walls.iter().map(run).collect()
}

const MAKE: &str = "mkdir -p /made/sub && echo text > /made/file && chmod 4751 /made/file && chown 5:6 /made/file && \
     ln /made/file /made/hard && ln -s file /made/soft && rm /etc/plain && rm -r /home && mkdir /home && echo n > /home/new && \
     mkfifo /made/fifo && touch -d '2001-02-03 04:05:06' /made/sub; echo ready";
const SEE: &str = "cat /made/soft; stat -c '%a %u:%g %h' /made/hard; ls /etc/plain 2>&1 | grep -c 'No such'; ls /home; \
     stat -c %F /made/fifo; stat -c %Y /made/sub; ls /etc/machine-id 2>/dev/null | wc -l";

behind_both_walls! {
    fn a_committed_image_has_everything(host) {
        let running = host.run_detached(&[], &["sh", "-c", &format!("{MAKE}; exec sleep 1000")]);
        host.wait_log(&running, "ready");
        assert_eq!(host.docker_input(&["cp", "-", &format!("{running}:/made")], &capable()).code, 0);
        let expected = run_state(host, &running);
        let id = host.docker(&["commit", "-m", "a remark", "-a", "me", "-c", "ENV MINE=yes", "-c", "CMD [\"cat\", \"/made/soft\"]", &running, "committed:one"]).ok();
        assert!(id.starts_with("sha256:"), "{id}");
        // It went on.
        assert_eq!(host.docker(&["exec", &running, "echo", "alive"]).ok(), "alive");
        assert_eq!(host.docker(&["kill", &running]).code, 0);
        host.wait_state(&running, "exited");
        host.docker(&["commit", "--pause=false", &running, "committed:two"]).ok();
        for image in ["committed:one", "committed:two"] {
            for seen in run_everywhere(host, image, SEE) {
                // The identity of a guest is the guest's: each start gives it anew, and no image has it.
                let (seen, expected) = (without_identity(&seen), without_identity(&expected));
                assert_eq!(seen, expected, "{image}");
            }
            let made = host.docker(&host.words_for(image, "create", &[], &["true"])).ok();
            let stream = host.docker(&["cp", &format!("{made}:/made/capable"), "-"]);
            assert!(contains(&stream.out, CAPABILITY), "{image}: the file's capability is lost");
        }
        let said = host.docker(&["image", "inspect", "committed:one"]).ok();
        let image: Value = serde_json::from_str(&said).unwrap();
        let config = &image[0]["Config"];
        assert!(config["Env"].as_array().unwrap().contains(&"MINE=yes".into()), "{config}");
        assert_eq!((image[0]["Author"].as_str(), image[0]["Comment"].as_str()), (Some("me"), Some("a remark")));
        assert_eq!(host.docker(&host.words_for("committed:one", "run", &["--rm"], &[])).ok(), "text");
        let layers = |image: &str| {
            let said = host.docker(&["image", "inspect", image, "--format", "{{len .RootFS.Layers}}"]).ok();
            said.parse::<usize>().unwrap()
        };
        assert_eq!(layers("committed:one"), layers(bulkhead_e2e::IMAGE) + 1);
    }

    fn an_image_of_a_committed_image_is_committed(host) {
        for number in 1..4 {
            let image = if number == 1 { bulkhead_e2e::IMAGE.to_owned() } else { format!("chain:{}", number - 1) };
            let script = format!("echo {number} >> /chain");
            let id = host.docker(&host.words_for(&image, "run", &["-d"], &["sh", "-c", &script])).ok();
            host.wait_state(&id, "exited");
            host.docker(&["commit", &id, &format!("chain:{number}")]).ok();
        }
        assert_eq!(host.docker(&host.words_for("chain:3", "run", &["--rm"], &["cat", "/chain"])).ok(), "1\n2\n3");
    }

    fn what_cannot_be_committed_is_refused(host) {
        let id = host.docker(&host.words("create", &[], &["true"])).ok();
        host.docker(&["commit", "-c", "RUN x", &id]).fails_saying(1, &["run is not a valid change command"]);
        assert_ne!(host.docker(&["commit", "none-of-that-name"]).code, 0);
        assert_ne!(host.docker(&["commit", &id, "Bad/Name"]).code, 0);
        assert_eq!(host.docker(&["commit", &id]).code, 0);
    }
}

fn run_state(host: &TestHost, id: &str) -> String {
    host.docker(&["exec", id, "sh", "-c", SEE]).ok()
}

fn without_identity(seen: &str) -> String {
    seen.rsplit_once('\n').map_or(seen, |(before, _)| before).to_owned()
}

/// dockerd on Debian has no quota for its folders.
fn check_bound(wall: Wall) {
    let Some(host) = TestHost::start_own(wall) else { return };
    let bound = ["--storage-opt", "size=64M"];
    let said = host.run(&bound, &["sh", "-c", "dd if=/dev/zero of=/big bs=1M count=100"]);
    assert!(said.err.to_lowercase().contains("no space left"), "{said}");
    let id = host.run_detached(&bound, &["sh", "-c", "echo kept > /kept; sync; echo up; exec sleep 1000"]);
    host.wait_log(&id, "up");
    let options = &host.inspect(&id)["HostConfig"]["StorageOpt"]["size"];
    assert_eq!(options.as_str(), Some("64M"));
    assert_eq!(host.docker(&["kill", &id]).code, 0);
    host.wait_state(&id, "exited");
    assert_eq!(host.docker(&["diff", &id]).ok(), "A /kept");
    assert!(host.docker(&["cp", &format!("{id}:/kept"), "-"]).text().contains("kept"));
    host.docker(&["commit", &id, "bounded"]).ok();
    assert_eq!(host.docker(&host.words_for("bounded", "run", &["--rm"], &["cat", "/kept"])).ok(), "kept");
    assert_eq!(host.docker(&["start", &id]).code, 0);
    assert_eq!(host.docker(&["exec", &id, "cat", "/kept"]).ok(), "kept");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(100 << 20);
    header.set_mode(0o644);
    header.set_path("large").unwrap();
    header.set_cksum();
    tar.append(&header, std::io::repeat(1).take(100 << 20)).unwrap();
    let bytes = tar.into_inner().unwrap();
    let refused = host.docker_input(&["cp", "-", &format!("{id}:/")], &bytes);
    refused.fails_saying(1, &["no space left"]);
    for bad in ["size=x", "size=1", "colour=red"] {
        assert_ne!(host.run(&["--storage-opt", bad], &["true"]).code, 0, "{bad}");
    }
}

#[test]
fn changes_of_a_process_container_are_bounded() {
    check_bound(Wall::Process);
}

#[test]
fn changes_of_a_hyperv_container_are_bounded() {
    check_bound(Wall::Hyperv);
}
