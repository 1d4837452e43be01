//! `info`.

use serde_json::Value;

use super::{say, text};
use crate::args::system::FormatArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::CliResult;
use crate::output::color::{self, Tone};
use crate::output::progress;
use crate::output::quantity::binary_size;
use crate::output::template::Template;

/// `info`.
pub(super) async fn info(client: &Client, args: &FormatArgs) -> CliResult<()> {
    // The engine looks at the host when it is asked for the first time.
    let url = Url::new("/info");
    let info: Value = progress::patiently(client.get(&url), async { "looking at the host".to_owned() }).await?;
    match args.format.as_deref() {
        Some("json") => return say(&info.to_string()),
        Some(format) => return say(&Template::parse(format)?.apply(&info)?),
        None => {}
    }
    say(&describe(&info, color::on_stdout()))?;
    for warning in info["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("{}", color::paint(warning, Tone::Warn, color::on_stderr()));
    }
    Ok(())
}

fn describe(info: &Value, colored: bool) -> String {
    let own = &info["Bulkhead"];
    let hyperv = &own["Hyperv"];
    let or_none = |value: &Value| value.as_str().filter(|text| !text.is_empty()).unwrap_or("none").to_owned();
    let available = match hyperv["Available"].as_bool() {
        Some(true) => color::paint("yes", Tone::Good, colored),
        _ => color::paint("no", Tone::Bad, colored),
    };
    let boundary = match hyperv["Accelerator"].as_str() {
        Some("kvm") => color::paint(text(hyperv, "Boundary"), Tone::Good, colored),
        _ => color::paint(&or_none(&hyperv["Boundary"]), Tone::Warn, colored),
    };
    let title = |name: &str| color::paint(name, Tone::Bold, colored);
    let mut lines = vec![
        title("Engine"),
        format!(" Version:            {}", text(info, "ServerVersion")),
        format!(" Data root:          {}", text(info, "DockerRootDir")),
        format!(" Images:             {}", info["Images"]),
        format!(
            " Containers:         {} ({} running, {} paused, {} stopped)",
            info["Containers"], info["ContainersRunning"], info["ContainersPaused"], info["ContainersStopped"]
        ),
        title("Isolation"),
        format!(" Default:            {}", text(own, "DefaultIsolation")),
        format!(" Hyperv available:   {available}"),
        format!(" Hypervisor:         {}", or_none(&hyperv["Hypervisor"])),
        format!(" Accelerator:        {}", or_none(&hyperv["Accelerator"])),
        format!(" Boundary:           {boundary}"),
        format!(" Reason:             {}", or_none(&hyperv["Reason"])),
        format!(" QEMU:               {}", or_none(&hyperv["Qemu"])),
        format!(" Guest kernel:       {}", or_none(&hyperv["GuestKernel"])),
        format!(" Standby VM:         {}", or_none(&own["Standby"])),
    ];
    let missing = hyperv["Missing"].as_array().into_iter().flatten().filter_map(Value::as_str);
    lines.extend(missing.map(|missing| format!(" Missing:            {}", color::paint(missing, Tone::Bad, colored))));
    lines.extend([
        title("Host"),
        format!(" Name:               {}", text(info, "Name")),
        format!(" System:             {}", text(info, "OperatingSystem")),
        format!(" Kernel:             {}", text(info, "KernelVersion")),
        format!(" Architecture:       {}", text(info, "Architecture")),
        format!(" Processors:         {}", info["NCPU"]),
        format!(" Memory:             {}", binary_size(info["MemTotal"].as_f64().unwrap_or_default())),
        format!(" Cgroups:            version {}", text(info, "CgroupVersion")),
    ]);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_wall_and_what_is_missing_are_told() {
        let info = json!({
            "ServerVersion": "0.1.0", "MemTotal": 1 << 30, "NCPU": 2,
            "Bulkhead": {"DefaultIsolation": "process", "Standby": "ready", "Hyperv": {
                "Available": false, "Boundary": "none (software emulation)", "Accelerator": "tcg", "Missing": ["install qemu"],
            }},
        });
        let text = describe(&info, false);
        for part in [
            "Hyperv available:   no",
            "none (software emulation)",
            "Standby VM:         ready",
            "Missing:            install qemu",
            "1GiB",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
