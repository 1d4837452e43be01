//! How an image's configuration fills what the user left open.

use bollard::models::ContainerConfig;
use oci_spec::image::Config as ImageConfig;

/// Fills the container's configuration from its image's, as `docker inspect` then shows it.
///
/// Shape: environment variables are added by name; the image's command is taken only if neither entrypoint nor command
/// was given, since a new entrypoint makes the old command meaningless; labels are added by name, but for reserved ones; so are volumes.
///
/// Source: moby `runconfig.Merge`.
pub fn merge_image(config: &mut ContainerConfig, from: &ImageConfig) {
    let take = |mine: &mut Option<String>, theirs: &Option<String>| {
        if mine.as_ref().is_none_or(String::is_empty) {
            mine.clone_from(theirs);
        }
    };
    take(&mut config.user, from.user());
    take(&mut config.working_dir, from.working_dir());
    take(&mut config.stop_signal, from.stop_signal());
    merge_command(config, from);
    let environment = config.env.get_or_insert_default();
    let missing: Vec<String> = from.env().iter().flatten().filter(|entry| !has(environment, entry)).cloned().collect();
    environment.extend(missing);
    if let Some(theirs) = from.exposed_ports() {
        let ports = config.exposed_ports.get_or_insert_default();
        ports.extend(theirs.iter().filter(|port| !ports.contains(port)).cloned().collect::<Vec<_>>());
    }
    if let Some(theirs) = from.volumes() {
        let volumes = config.volumes.get_or_insert_default();
        volumes.extend(theirs.iter().filter(|path| !volumes.contains(path)).cloned().collect::<Vec<_>>());
    }
    let labels = config.labels.get_or_insert_default();
    for (name, value) in from.labels().as_ref().map(image::inheritable_labels).unwrap_or_default() {
        labels.entry(name).or_insert(value);
    }
}

/// An entrypoint of one empty word is how `--entrypoint ""` arrives: none, and the image's command is not taken.
fn merge_command(config: &mut ContainerConfig, image: &ImageConfig) {
    let none = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
    if none(&config.entrypoint) {
        if none(&config.cmd) {
            config.cmd.clone_from(image.cmd());
        }
        config.entrypoint.clone_from(image.entrypoint());
    } else if config.entrypoint.as_deref().is_some_and(|list| list.len() == 1 && list[0].is_empty()) {
        config.entrypoint = None;
    }
}

/// True if the list sets, or with a bare name removes, the variable of `entry`.
fn has(environment: &[String], entry: &str) -> bool {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    environment.iter().any(|mine| name(mine) == name(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        serde_json::from_value(serde_json::json!({
            "User": "app", "WorkingDir": "/srv", "Env": ["PATH=/bin", "A=image"], "Entrypoint": ["/entry"],
            "Cmd": ["serve"], "Labels": {"a": "image", "b": "image"}, "StopSignal": "SIGINT", "ExposedPorts": {"80/tcp": {}},
        }))
        .unwrap()
    }

    fn merged(config: ContainerConfig) -> ContainerConfig {
        let mut config = config;
        merge_image(&mut config, &image());
        config
    }

    fn strings(list: &[&str]) -> Option<Vec<String>> {
        Some(list.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_the_user_says_wins() {
        let config = merged(ContainerConfig {
            user: Some("me".into()),
            env: strings(&["A=mine"]),
            labels: Some([("a".to_owned(), "mine".to_owned())].into()),
            ..Default::default()
        });
        assert_eq!(config.user.as_deref(), Some("me"));
        assert_eq!(config.env, strings(&["A=mine", "PATH=/bin"]));
        let labels = config.labels.unwrap();
        assert_eq!((labels["a"].as_str(), labels["b"].as_str()), ("mine", "image"));
        assert_eq!((config.working_dir.as_deref(), config.stop_signal.as_deref()), (Some("/srv"), Some("SIGINT")));
    }

    #[test]
    fn a_new_entrypoint_forgets_the_images_command() {
        let plain = merged(ContainerConfig::default());
        assert_eq!((plain.entrypoint, plain.cmd), (strings(&["/entry"]), strings(&["serve"])));
        let command = merged(ContainerConfig { cmd: strings(&["x"]), ..Default::default() });
        assert_eq!((command.entrypoint, command.cmd), (strings(&["/entry"]), strings(&["x"])));
        let entrypoint = merged(ContainerConfig { entrypoint: strings(&["/mine"]), ..Default::default() });
        assert_eq!((entrypoint.entrypoint, entrypoint.cmd), (strings(&["/mine"]), None));
        let emptied =
            merged(ContainerConfig { entrypoint: strings(&[""]), cmd: strings(&["x"]), ..Default::default() });
        assert_eq!((emptied.entrypoint, emptied.cmd), (None, strings(&["x"])));
    }

    #[test]
    fn a_bare_name_keeps_the_images_variable_out() {
        let config = merged(ContainerConfig { env: strings(&["A"]), ..Default::default() });
        assert_eq!(config.env, strings(&["A", "PATH=/bin"]));
    }
}
