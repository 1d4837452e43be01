//! What the API takes: every operation with its parameters and an example of its body. Requests are made by altering these.

/// What a parameter should be.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Flag,
    Number,
    Moment,
    Filters,
    Text,
    Path,
    Image,
    Word(&'static [&'static str]),
}

/// An operation of the API.
#[derive(Debug)]
pub struct Operation {
    pub method: &'static str,
    /// `{c}` is a container, `{x}` an exec, `{i}` an image, `{n}` a network, `{v}` a volume.
    pub path: &'static str,
    pub query: &'static [(&'static str, Kind)],
    /// JSON, or empty.
    pub body: &'static str,
    /// It may answer late, or never end.
    pub may_wait: bool,
    /// How often it is chosen, beside the others.
    pub weight: u32,
}

const fn quick(method: &'static str, path: &'static str, query: &'static [(&'static str, Kind)]) -> Operation {
    Operation { method, path, query, body: "", may_wait: false, weight: 4 }
}

const fn slow(method: &'static str, path: &'static str, query: &'static [(&'static str, Kind)]) -> Operation {
    Operation { may_wait: true, weight: 1, ..quick(method, path, query) }
}

const fn with_body(method: &'static str, path: &'static str, body: &'static str) -> Operation {
    Operation { body, weight: 12, ..quick(method, path, &[]) }
}

use Kind::{Filters, Flag, Image, Moment, Number, Path, Text, Word};

const SIGNALS: Kind = Word(&["TERM", "SIGKILL", "9", "0", "-1", "RTMIN+3", "NOPE", "65"]);
const CONDITIONS: Kind = Word(&["not-running", "next-exit", "removed", "never"]);
const ATTACH: &[(&str, Kind)] = &[
    ("stream", Flag),
    ("stdin", Flag),
    ("stdout", Flag),
    ("stderr", Flag),
    ("logs", Flag),
    ("detachKeys", Word(&["ctrl-p,ctrl-q", "a", "ctrl-", ",,", "ctrl-@"])),
];
const LOGS: &[(&str, Kind)] = &[
    ("follow", Flag),
    ("stdout", Flag),
    ("stderr", Flag),
    ("since", Moment),
    ("until", Moment),
    ("timestamps", Flag),
    ("tail", Number),
    ("details", Flag),
];

/// The image that containers are made of, which no request names that could take it away.
pub const KEPT_IMAGE: &str = "kept-by-the-test";

/// All of them.
pub const OPERATIONS: &[Operation] = &[
    Operation {
        query: &[("name", Text), ("platform", Text)],
        weight: 120,
        ..with_body("POST", "/containers/create", CREATE)
    },
    quick("GET", "/containers/json", &[("all", Flag), ("limit", Number), ("size", Flag), ("filters", Filters)]),
    quick("GET", "/containers/{c}/json", &[("size", Flag)]),
    quick("GET", "/containers/{c}/top", &[("ps_args", Text)]),
    slow("GET", "/containers/{c}/logs", LOGS),
    quick("GET", "/containers/{c}/changes", &[]),
    slow("GET", "/containers/{c}/export", &[]),
    slow("GET", "/containers/{c}/stats", &[("stream", Flag), ("one-shot", Flag)]),
    quick("POST", "/containers/{c}/resize", &[("h", Number), ("w", Number)]),
    Operation { weight: 1, ..quick("POST", "/containers/{c}/start", &[("detachKeys", Text)]) },
    slow("POST", "/containers/{c}/stop", &[("t", Number), ("signal", SIGNALS)]),
    slow("POST", "/containers/{c}/restart", &[("t", Number), ("signal", SIGNALS)]),
    quick("POST", "/containers/{c}/kill", &[("signal", SIGNALS)]),
    with_body("POST", "/containers/{c}/update", UPDATE),
    quick("POST", "/containers/{c}/rename", &[("name", Text)]),
    quick("POST", "/containers/{c}/pause", &[]),
    quick("POST", "/containers/{c}/unpause", &[]),
    slow("POST", "/containers/{c}/attach", ATTACH),
    slow("GET", "/containers/{c}/attach/ws", ATTACH),
    slow("POST", "/containers/{c}/wait", &[("condition", CONDITIONS)]),
    quick("DELETE", "/containers/{c}", &[("v", Flag), ("force", Flag), ("link", Flag)]),
    quick("HEAD", "/containers/{c}/archive", &[("path", Path)]),
    slow("GET", "/containers/{c}/archive", &[("path", Path)]),
    Operation {
        body: "no tar archive",
        ..slow(
            "PUT",
            "/containers/{c}/archive",
            &[("path", Path), ("noOverwriteDirNonDir", Flag), ("copyUIDGID", Flag)],
        )
    },
    quick("POST", "/containers/prune", &[("filters", Filters)]),
    with_body("POST", "/containers/{c}/exec", EXEC),
    slow("GET", "/containers/{c}/checkpoints", &[("dir", Path)]),
    Operation {
        may_wait: true,
        weight: 1,
        ..with_body("POST", "/exec/{x}/start", r#"{"Detach":false,"Tty":false,"ConsoleSize":[24,80]}"#)
    },
    quick("POST", "/exec/{x}/resize", &[("h", Number), ("w", Number)]),
    quick("GET", "/exec/{x}/json", &[]),
    quick(
        "GET",
        "/images/json",
        &[("all", Flag), ("filters", Filters), ("digests", Flag), ("shared-size", Flag), ("manifests", Flag)],
    ),
    slow(
        "POST",
        "/images/create",
        &[
            ("fromImage", Image),
            ("tag", Text),
            ("fromSrc", Text),
            ("repo", Image),
            ("platform", Text),
            ("changes", Text),
        ],
    ),
    quick("GET", "/images/{i}/json", &[]),
    quick("GET", "/images/{i}/history", &[]),
    slow("POST", "/images/{i}/push", &[("tag", Text)]),
    quick("POST", "/images/{i}/tag", &[("repo", Image), ("tag", Text)]),
    quick("DELETE", "/images/{i}", &[("force", Flag), ("noprune", Flag)]),
    quick("GET", "/images/search", &[("term", Text), ("limit", Number), ("filters", Filters)]),
    quick("POST", "/images/prune", &[("filters", Filters)]),
    slow("GET", "/images/get", &[("names", Image)]),
    Operation { body: "no tar archive", ..slow("POST", "/images/load", &[("quiet", Flag)]) },
    Operation { body: "no tar archive", ..slow("POST", "/build", BUILD) },
    quick("POST", "/build/prune", &[("all", Flag), ("filters", Filters), ("keep-storage", Number)]),
    Operation {
        query: &[
            ("container", Text),
            ("repo", Image),
            ("tag", Text),
            ("comment", Text),
            ("author", Text),
            ("pause", Flag),
            ("changes", Text),
        ],
        weight: 2,
        ..with_body("POST", "/commit", COMMIT)
    },
    with_body("POST", "/auth", r#"{"username":"a","password":"b","serveraddress":"localhost:1"}"#),
    quick("GET", "/info", &[]),
    quick("GET", "/version", &[]),
    quick("GET", "/_ping", &[]),
    slow("GET", "/events", &[("since", Moment), ("until", Moment), ("filters", Filters)]),
    quick(
        "GET",
        "/system/df",
        &[("type", Word(&["container", "image", "volume", "build-cache", "x"])), ("verbose", Flag)],
    ),
    slow("GET", "/distribution/{i}/json", &[]),
    quick("GET", "/networks", &[("filters", Filters)]),
    quick("GET", "/networks/{n}", &[("verbose", Flag), ("scope", Text)]),
    Operation { weight: 2, ..with_body("POST", "/networks/create", NETWORK) },
    with_body("POST", "/networks/{n}/connect", CONNECT),
    with_body("POST", "/networks/{n}/disconnect", r#"{"Container":"z1","Force":true}"#),
    quick("DELETE", "/networks/{n}", &[]),
    quick("POST", "/networks/prune", &[("filters", Filters)]),
    quick("GET", "/volumes", &[("filters", Filters)]),
    with_body(
        "POST",
        "/volumes/create",
        r#"{"Name":"v1","Driver":"local","DriverOpts":{"type":"tmpfs"},"Labels":{"a":"b"}}"#,
    ),
    quick("GET", "/volumes/{v}", &[]),
    quick("DELETE", "/volumes/{v}", &[("force", Flag)]),
    quick("POST", "/volumes/prune", &[("filters", Filters), ("all", Flag)]),
    quick("GET", "/plugins", &[("filters", Filters)]),
    quick("GET", "/swarm", &[]),
    quick("GET", "/services", &[("filters", Filters)]),
    quick("GET", "/bulkhead/templates", &[]),
];

const BUILD: &[(&str, Kind)] = &[
    ("dockerfile", Path),
    ("t", Image),
    ("q", Flag),
    ("nocache", Flag),
    ("buildargs", Filters),
    ("labels", Filters),
    ("target", Text),
    ("memory", Number),
    ("networkmode", Text),
    ("remote", Text),
    ("isolation", Text),
    ("version", Number),
];

const UPDATE: &str = r#"{"CpuShares":512,"Memory":314572800,"MemorySwap":514288000,"MemoryReservation":209715200,"CpuPeriod":100000,
"CpuQuota":50000,"CpusetCpus":"0","CpusetMems":"0","NanoCpus":0,"PidsLimit":100,"BlkioWeight":300,
"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":4}}"#;

const EXEC: &str = r#"{"AttachStdin":false,"AttachStdout":true,"AttachStderr":true,"DetachKeys":"ctrl-p,ctrl-q","Tty":false,
"Cmd":["true"],"Env":["A=b"],"User":"0:0","WorkingDir":"/","Privileged":false,"ConsoleSize":[10,10]}"#;

const COMMIT: &str =
    r#"{"Hostname":"h","User":"1","Env":["A=b"],"Cmd":["true"],"Labels":{"a":"b"},"ExposedPorts":{"80/tcp":{}}}"#;

const NETWORK: &str = r#"{"Name":"n1","CheckDuplicate":true,"Driver":"bridge","Internal":true,"Attachable":false,"EnableIPv6":false,
"IPAM":{"Driver":"default","Config":[{"Subnet":"10.231.7.0/24","IPRange":"10.231.7.128/25","Gateway":"10.231.7.1","AuxiliaryAddresses":{"a":"10.231.7.9"}}],"Options":{}},
"Options":{"com.docker.network.driver.mtu":"1400"},"Labels":{"a":"b"}}"#;

const CONNECT: &str = r#"{"Container":"z1","EndpointConfig":{"IPAMConfig":{"IPv4Address":"10.231.7.130","LinkLocalIPs":[]},
"Aliases":["one","two"],"MacAddress":"02:42:ac:11:00:09","DriverOpts":{"a":"b"},"Links":["z2:x"]}}"#;

/// Commands are harmless whatever is altered: there is nothing but busybox, and each runs in a container of its own.
const CREATE: &str = r#"{"Hostname":"h","Domainname":"d","User":"0","AttachStdin":false,"AttachStdout":true,"AttachStderr":true,
"ExposedPorts":{"80/tcp":{},"53/udp":{}},"Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":["A=b","C"],"Cmd":["true"],
"Healthcheck":{"Test":["CMD","true"],"Interval":1000000000,"Timeout":1000000000,"Retries":3,"StartPeriod":0,"StartInterval":0},
"Image":"kept-by-the-test","Volumes":{"/data":{}},"WorkingDir":"/","Entrypoint":[],"Labels":{"a":"b"},"StopSignal":"TERM","StopTimeout":1,"Shell":["/bin/sh"],
"HostConfig":{"Binds":["v1:/bound:ro"],"ContainerIDFile":"","LogConfig":{"Type":"json-file","Config":{"max-size":"1m","max-file":"2"}},
"NetworkMode":"none","PortBindings":{},"RestartPolicy":{"Name":"no","MaximumRetryCount":0},"AutoRemove":false,"VolumeDriver":"",
"VolumesFrom":[],"ConsoleSize":[24,80],"CapAdd":["NET_ADMIN"],"CapDrop":["MKNOD"],"CgroupnsMode":"private","Dns":["1.1.1.1"],"DnsOptions":["a"],
"DnsSearch":["b"],"ExtraHosts":["a:1.2.3.4"],"GroupAdd":["1"],"IpcMode":"private","Links":[],"OomScoreAdj":100,"PidMode":"","Privileged":false,
"PublishAllPorts":false,"ReadonlyRootfs":true,"SecurityOpt":["no-new-privileges"],"StorageOpt":{},"Tmpfs":{"/t":"size=1m"},"UTSMode":"","UsernsMode":"",
"ShmSize":1048576,"Sysctls":{"net.ipv4.ip_unprivileged_port_start":"0"},"Runtime":"","Isolation":"process","CpuShares":10,"Memory":67108864,"NanoCpus":500000000,
"CgroupParent":"","BlkioWeight":0,"BlkioWeightDevice":[],"BlkioDeviceReadBps":[],"CpuPeriod":0,"CpuQuota":0,"CpusetCpus":"0","CpusetMems":"","Devices":[],
"DeviceCgroupRules":["c 1:3 rwm"],"DeviceRequests":[],"MemoryReservation":0,"MemorySwap":0,"MemorySwappiness":10,"OomKillDisable":false,"Init":false,
"PidsLimit":64,"Ulimits":[{"Name":"nofile","Soft":64,"Hard":128}],"CpuCount":0,"CpuPercent":0,"Mounts":[{"Type":"tmpfs","Target":"/m","ReadOnly":true,"TmpfsOptions":{"SizeBytes":4096,"Mode":448}}],
"MaskedPaths":["/proc/kcore"],"ReadonlyPaths":["/proc/bus"],"Annotations":{"a":"b"}},
"NetworkingConfig":{"EndpointsConfig":{"none":{"Aliases":["x"]}}}}"#;
