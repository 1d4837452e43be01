//! Programs that people run, as Debian packages them: PostgreSQL, Redis and nginx.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bulkhead_e2e::{TestHost, Wall, debian, eventually, skip};

/// PostgreSQL in the foreground, with a cluster in the volume, made if there is none.
const DATABASE: &str =
    "set -e; D=/var/lib/postgresql/data; as='setpriv --reuid=postgres --regid=postgres --init-groups'
    if [ ! -e $D/ready ]; then
        rm -rf $D; install -d -o postgres -g postgres -m 700 $D
        $as initdb -k -D $D -A trust -E UTF8 --no-locale > /dev/null
        echo 'host all all all trust' >> $D/pg_hba.conf; touch $D/ready
    fi
    exec $as postgres -D $D -c listen_addresses='*' -c unix_socket_directories=/tmp";
const DATABASE_OPTIONS: [&str; 4] = ["-v", "pg:/var/lib/postgresql", "--stop-signal", "SIGINT"];
/// Redis, whose every change is on disk before it is answered.
const CACHE: &str =
    "exec redis-server --dir /data --appendonly yes --appendfsync always --protected-mode no --bind '*'";
const CACHE_OPTIONS: [&str; 2] = ["-v", "redis:/data"];

/// A host with the image `apps`; `None` when it cannot be made here.
fn host(wall: Wall) -> Option<TestHost> {
    let image = match debian::applications() {
        Ok(image) => image,
        Err(reason) => {
            skip(&reason);
            return None;
        }
    };
    let host = TestHost::start_own(wall)?;
    // Before Debian's wrappers, which are Perl scripts: an emulated processor takes seconds for one.
    let path = "ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let image = image.to_str().unwrap();
    host.docker(&["import", "-c", path, image, "apps"]).ok();
    Some(host)
}

fn start(host: &TestHost, wall: Wall, name: &str, options: &[&str], script: &str) {
    let words = [&["run", "-d", "--isolation", wall.word(), "--name", name], options, &["apps", "sh", "-c", script]];
    host.docker(&words.concat()).ok();
}

/// Waits until a server has said so many times that it is ready: asking it would cost an emulated utility VM more.
fn wait_ready(host: &TestHost, container: &str, times: usize) {
    let logs = || {
        let said = host.docker(&["logs", container]);
        said.text() + &said.err
    };
    let ready = eventually(Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(100));
        logs().to_lowercase().matches("ready to accept connections").count() >= times
    });
    assert!(ready, "{container} is not ready: {}", logs());
}

/// Asks the database; from another container, or its own.
fn query(host: &TestHost, container: &str, server: &str, statements: &[&str]) -> String {
    let mut words = vec!["exec", container, "psql", "-h", server, "-U", "postgres", "-Atq", "-v", "ON_ERROR_STOP=1"];
    words.extend(statements.iter().flat_map(|statement| ["-c", statement]));
    host.docker(&words).ok()
}

fn stop(host: &TestHost, container: &str) {
    host.docker(&["stop", "-t", "60", container]).ok();
    assert_eq!(
        host.state(container),
        ("exited".to_owned(), 0),
        "{}",
        host.docker(&["logs", "--tail", "20", container])
    );
}

/// What a published port says to this.
fn exchange(host: &TestHost, container: &str, port: &str, bytes: &[u8]) -> String {
    let published = host.docker(&["port", container, port]).ok();
    let mut answer = vec![0; 4096];
    let answered = eventually(Duration::from_secs(20), || {
        let said = TcpStream::connect(published.trim()).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(bytes)?;
            stream.read(&mut answer)
        });
        answer.truncate(said.as_ref().copied().unwrap_or(0));
        let complete = !answer.is_empty();
        answer.resize(if complete { answer.len() } else { 4096 }, 0);
        complete
    });
    assert!(answered, "{container} does not answer at {published}");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Starts, ends, crashes, and changes of the wall: what was written is there.
fn data_is_kept(wall: Wall) {
    let Some(host) = host(wall) else { return };
    let database = [&DATABASE_OPTIONS[..], &["--network", "none"]].concat();
    let cache = [&CACHE_OPTIONS[..], &["--network", "none"]].concat();
    let ask = |statements: &[&str]| query(&host, "db", "/tmp", statements);
    let recall = |key: &str| host.docker(&["exec", "cache", "redis-cli", "get", key]).ok();
    // The cluster is made by a process container whatever the wall, which is quicker.
    start(&host, Wall::Process, "db", &database, DATABASE);
    start(&host, Wall::Process, "cache", &cache, CACHE);
    wait_ready(&host, "db", 1);
    ask(&["create table t as select g as n, md5(g::text) from generate_series(1, 5000) g", "create index on t (n)"]);
    wait_ready(&host, "cache", 1);
    host.docker(&["exec", "cache", "redis-cli", "set", "first", "one"]).ok();
    for container in ["db", "cache"] {
        stop(&host, container);
        host.docker(&["rm", container]).ok();
    }
    start(&host, wall, "db", &database, DATABASE);
    start(&host, wall, "cache", &cache, CACHE);
    wait_ready(&host, "db", 1);
    assert_eq!(ask(&["select count(*) from t", "insert into t values (5001, 'more')"]), "5000");
    wait_ready(&host, "cache", 1);
    assert_eq!(recall("first"), "one");
    host.docker(&["exec", "cache", "redis-cli", "set", "second", "two"]).ok();
    // What was answered is on disk, whatever happens then.
    host.docker(&["kill", "db", "cache"]).ok();
    host.docker(&["start", "db", "cache"]).ok();
    wait_ready(&host, "db", 2);
    assert_eq!(ask(&["select count(*) from t", "vacuum full t", "select count(*) from t where n = 5001"]), "5001\n1");
    assert!(host.docker(&["logs", "db"]).err.contains("automatic recovery in progress"));
    wait_ready(&host, "cache", 2);
    assert_eq!(recall("second"), "two");
    for container in ["db", "cache"] {
        stop(&host, container);
        host.docker(&["rm", container]).ok();
    }
    let volume = ["--network", "none", "-v", "pg:/var/lib/postgresql"];
    let check = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "pg_checksums", "-c", "-D"];
    let words = [&["run", "--rm"], &volume[..], &["apps"], &check, &["/var/lib/postgresql/data"]].concat();
    let checked = host.docker(&words).ok();
    assert!(checked.contains("Bad checksums:  0"), "{checked}");
}

#[test]
fn databases_keep_their_data_process() {
    data_is_kept(Wall::Process);
}

#[test]
fn databases_keep_their_data_hyperv() {
    data_is_kept(Wall::Hyperv);
}

/// Servers and clients on one network, by name; the host by published ports; and again after a restart.
fn applications_reach_each_other(wall: Wall) {
    let Some(host) = host(wall) else { return };
    host.docker(&["network", "create", "shop"]).ok();
    // The cluster is made by a process container whatever the wall: an emulated utility VM takes a minute for it.
    start(&host, Wall::Process, "db", &[&DATABASE_OPTIONS[..], &["--network", "none"]].concat(), DATABASE);
    wait_ready(&host, "db", 1);
    stop(&host, "db");
    host.docker(&["rm", "db"]).ok();
    let network = ["--network", "shop"];
    start(&host, wall, "db", &[&DATABASE_OPTIONS[..], &network, &["-p", "127.0.0.1::5432"]].concat(), DATABASE);
    start(&host, wall, "cache", &[&CACHE_OPTIONS[..], &network, &["-p", "127.0.0.1::6379"]].concat(), CACHE);
    let pages = "echo served > /var/www/html/page; exec nginx -g 'daemon off;'";
    let options = ["--network", "shop", "-v", "pages:/var/www/html", "-p", "127.0.0.1::80"];
    start(&host, wall, "web", &options, pages);
    wait_ready(&host, "db", 1);
    wait_ready(&host, "cache", 1);
    for turn in ["one", "two"] {
        let insert = format!("insert into visits values ('{turn}')");
        query(&host, "web", "db", &["create table if not exists visits (name text)", &insert]);
        assert_eq!(host.docker(&["exec", "db", "redis-cli", "-h", "cache", "incr", "visits"]).code, 0);
        let fetch = "exec 3<>/dev/tcp/web/80; printf 'GET /page HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        let fetched = host.docker(&["exec", "cache", "bash", "-c", fetch]).ok();
        assert!(fetched.starts_with("HTTP/1.1 200 OK") && fetched.ends_with("served"), "{fetched}");
        assert!(exchange(&host, "web", "80", b"GET /page HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 OK"));
        assert_eq!(exchange(&host, "cache", "6379", b"PING\r\n"), "+PONG\r\n");
        // SSLRequest of PostgreSQL's protocol, which it answers with No.
        assert_eq!(exchange(&host, "db", "5432", &[0, 0, 0, 8, 4, 210, 22, 47]), "N");
        if turn == "one" {
            host.docker(&["restart", "-t", "60", "db", "cache", "web"]).ok();
            wait_ready(&host, "db", 2);
            wait_ready(&host, "cache", 2);
        }
    }
    assert_eq!(query(&host, "web", "db", &["select string_agg(name, ',' order by name) from visits"]), "one,two");
    assert_eq!(host.docker(&["exec", "web", "redis-cli", "-h", "cache", "get", "visits"]).ok(), "2");
}

#[test]
fn applications_reach_each_other_process() {
    applications_reach_each_other(Wall::Process);
}

#[test]
fn applications_reach_each_other_hyperv() {
    applications_reach_each_other(Wall::Hyperv);
}
