//! How fast a utility VM may be on a network.

use std::time::Duration;

use bulkhead_e2e::{TestHost, Wall};

use crate::networks::{run, start};

const KIB: usize = 512;
/// Both ways a quarter of that each second.
const LIMITED: &str =
    "name=n,driver-opt=dev.bulkhead.rate.send-bytes=128k,driver-opt=dev.bulkhead.rate.receive-bytes=128k";

#[test]
fn each_way_has_its_rate_where_there_is_our_own_vmm() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    host.docker(&["network", "create", "n"]).ok();
    let process = ["run", "--isolation=process", "--network", LIMITED, "box", "true"];
    host.docker(&process).fails_saying(125, &["dev.bulkhead.rate", "needs isolation hyperv"]);
    run(&host, &["--network", "name=n,driver-opt=dev.bulkhead.rate.send-bytes=fast"], &["true"])
        .fails_saying(125, &["invalid rate"]);
    if !host.docker(&["info", "--format", "{{.Labels}}"]).ok().contains("hypervisor=bulkhead-vmm ") {
        run(&host, &["--network", LIMITED], &["true"]).fails_saying(125, &["rates of networks need our own VMM"]);
        return;
    }
    let serve = format!("dd if=/dev/zero of=/etc/bulk bs=1k count={KIB}; exec httpd -f -p 80 -h /etc");
    start(&host, "limited", &["--network", LIMITED], &["sh", "-c", &serve]);
    let other = ["run", "--isolation=process", "-d", "--network=n", "--name=free", "box", "sh", "-c", &serve];
    host.docker(&other).ok();
    // Timed where it happens, since an exec takes its time, too. Whoever serves has just begun.
    let fetch = |client: &str, server: &str| -> Duration {
        let now = "$(cut -d' ' -f1 /proc/uptime | tr -d .)";
        let page = format!("http://{server}/bulk");
        let script = format!(
            "until wget -q -O /dev/null {page}; do sleep 0.2; done; t={now}; wget -q -O /tmp/bulk {page}; echo $(stat -c %s /tmp/bulk) $(({now} - t))"
        );
        let said = host.docker(&["exec", client, "sh", "-c", &script]).ok();
        let (bytes, hundredths) = said.split_once(' ').unwrap_or_else(|| panic!("{said}"));
        assert_eq!(bytes, (KIB * 1024).to_string(), "{client} from {server}");
        Duration::from_millis(hundredths.parse::<u64>().unwrap() * 10)
    };
    let ways = [("free", "limited"), ("limited", "free")];
    let limited = ways.map(|(client, server)| fetch(client, server));
    assert!(limited.iter().all(|took| *took >= Duration::from_secs(3)), "{limited:?}");
    host.docker(&["network", "disconnect", "n", "limited"]).ok();
    host.docker(&["network", "connect", "n", "limited"]).ok();
    let free = ways.map(|(client, server)| fetch(client, server));
    assert!(free.iter().zip(&limited).all(|(free, limited)| *free < *limited / 2), "{free:?}, {limited:?}");
}
