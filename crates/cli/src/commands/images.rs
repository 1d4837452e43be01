//! `images`, `rmi`, `tag`.

use serde_json::Value;

use super::{filters, for_each, print, say, short_id, text};
use crate::args::image::{ImagesArgs, RmiArgs, TagArgs};
use crate::client::Client;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::output::listing::{Column, Columns, Row, Style};
use crate::output::quantity::decimal_size;
use crate::output::time;
use crate::preferences::Preferences;

const NONE: &str = "<none>";
const SHOWN: [Column; 5] =
    [("Repository", "REPOSITORY"), ("Tag", "TAG"), ("ID", "IMAGE ID"), ("CreatedSince", "CREATED"), ("Size", "SIZE")];
const TREE: [Column; 5] =
    [("Image", "IMAGE"), ("ID", "ID"), ("Size", "DISK USAGE"), ("UniqueSize", "UNIQUE"), ("InUse", "IN USE")];
const HIDDEN: [Column; 3] = [("Digest", "DIGEST"), ("CreatedAt", "CREATED AT"), ("Containers", "CONTAINERS")];

/// `images`.
pub(super) async fn images(client: &Client, args: &ImagesArgs) -> CliResult<()> {
    let mut wanted = args.filter.clone();
    wanted.extend(args.reference.iter().map(|reference| format!("reference={reference}")));
    let url = Url::new("/images/json").with_flag("all", args.all).with_some("filters", filters(&wanted)?.as_deref());
    if args.tree {
        let images: Vec<Value> = client.get(&url.with("manifests", "1").with("shared-size", "1")).await?;
        let rows: Vec<Row> = images.iter().flat_map(|image| tree_rows(image, args.no_trunc)).collect();
        return print(Columns { shown: &TREE, hidden: &[] }, &rows, Style { format: None, quiet: None });
    }
    let images: Vec<Value> = client.get(&url).await?;
    let mut rows: Vec<Row> = images.iter().flat_map(|image| rows_of(image, args)).collect();
    if args.quiet {
        rows = images.iter().map(|image| id_row(image, args.no_trunc)).collect();
    }
    let mut shown = SHOWN.to_vec();
    if args.digests {
        shown.insert(2, ("Digest", "DIGEST"));
    }
    let format = Preferences::format(args.format.as_deref(), &client.preferences().images_format, args.quiet);
    let style = Style { format, quiet: args.quiet.then_some("ID") };
    print(Columns { shown: &shown, hidden: &HIDDEN }, &rows, style)
}

/// A row for the image, named by its first name, and one for each further name.
fn tree_rows(image: &Value, full: bool) -> Vec<Row> {
    let names: Vec<&str> = image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let number = |field: &str| image[field].as_f64().unwrap_or_default();
    let mut top = id_row(image, full);
    top.set("Image", *names.first().unwrap_or(&NONE))
        .set("Size", decimal_size(number("Size")))
        .set("UniqueSize", decimal_size(number("Size") - number("SharedSize").max(0.0)))
        .set("InUse", if number("Containers") > 0.0 { "yes" } else { "" });
    let further = names.iter().enumerate().skip(1).map(|(at, name)| {
        let mut row = Row::default();
        row.set("Image", format!("{} {name}", if at + 1 == names.len() { "└─" } else { "├─" }));
        row
    });
    std::iter::once(top).chain(further).collect()
}

fn id_row(image: &Value, full: bool) -> Row {
    let mut row = Row::default();
    let id = text(image, "Id");
    row.set("ID", if full { id.to_owned() } else { short_id(id) });
    row
}

/// One row for each name of an image.
fn rows_of(image: &Value, args: &ImagesArgs) -> Vec<Row> {
    let names = |field: &str| -> Vec<String> {
        image[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let digests = names("RepoDigests");
    let mut named: Vec<(String, String, String)> = names("RepoTags")
        .iter()
        .map(|name| {
            let (repository, tag) = name.rsplit_once(':').unwrap_or((name, NONE));
            (repository.to_owned(), tag.to_owned(), digest_of(&digests, repository))
        })
        .collect();
    if named.is_empty() {
        let repository =
            digests.first().and_then(|name| name.split_once('@')).map_or(NONE, |(repository, _)| repository);
        named.push((repository.to_owned(), NONE.to_owned(), digest_of(&digests, repository)));
    }
    let created = image["Created"].as_i64().unwrap_or_default();
    let row = |(repository, tag, digest): (String, String, String)| {
        let mut row = id_row(image, args.no_trunc);
        row.set("Repository", repository)
            .set("Tag", tag)
            .set("Digest", digest)
            .set("CreatedSince", time::ago(created))
            .set("CreatedAt", time::utc(created))
            .set("Size", decimal_size(image["Size"].as_f64().unwrap_or_default()))
            .set("Containers", image["Containers"].to_string());
        row
    };
    named.into_iter().map(row).collect()
}

fn digest_of(digests: &[String], repository: &str) -> String {
    let mut pairs = digests.iter().filter_map(|name| name.split_once('@'));
    pairs.find(|(name, _)| *name == repository).map_or(NONE, |(_, digest)| digest).to_owned()
}

/// `rmi`.
pub(super) async fn rmi(client: &Client, args: &RmiArgs) -> CliResult<()> {
    for_each(&args.images, async |name| {
        let removed = client
            .delete(&Url::image(name, "").with_flag("force", args.force).with_flag("noprune", args.no_prune))
            .await?;
        let removed: Vec<Value> =
            serde_json::from_slice(&removed).map_err(|error| CliError::Answer(error.to_string()))?;
        for one in &removed {
            match (one["Untagged"].as_str(), one["Deleted"].as_str()) {
                (Some(name), _) => say(&format!("Untagged: {name}"))?,
                (_, Some(id)) => say(&format!("Deleted: {id}"))?,
                (None, None) => {}
            }
        }
        Ok(())
    })
    .await
}

/// `tag`.
pub(super) async fn tag(client: &Client, args: &TagArgs) -> CliResult<()> {
    Ok(client.command(&Url::image(&args.image, "/tag").with("repo", &args.target)).await?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_has_a_row_for_each_name() {
        let args = ImagesArgs {
            all: false,
            quiet: false,
            no_trunc: false,
            digests: true,
            tree: false,
            filter: Vec::new(),
            format: None,
            reference: None,
        };
        let image = json!({
            "Id": format!("sha256:{}", "ab".repeat(32)), "Created": 1, "Size": 4_000_000,
            "RepoTags": ["busybox:1", "localhost:5000/x:y"], "RepoDigests": ["busybox@sha256:cd"],
        });
        let rows = rows_of(&image, &args);
        let text = format!("{rows:?}");
        assert_eq!(rows.len(), 2);
        for part in ["busybox", "localhost:5000/x", "sha256:cd", "4MB", "abababababab"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let tree = tree_rows(&image, false);
        assert!(tree.len() == 2 && format!("{tree:?}").contains("└─ localhost:5000/x:y"), "{tree:?}");
        let nameless = rows_of(&json!({"Id": "sha256:ab", "RepoTags": []}), &args);
        assert!(format!("{nameless:?}").contains(NONE));
    }
}
