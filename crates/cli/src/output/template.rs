//! `--format`: the part of Go's text/template that people use with Docker.
//!
//! Fields (`{{.State.Status}}`), the functions of [`functions`], pipelines, parentheses, `{{range .X}}...{{end}}`,
//! `{{if .X}}...{{else if .Y}}...{{else}}...{{end}}`, `{{with .X}}...{{end}}`, comments, `\t` and `\n`. No variables.

mod functions;
mod parse;

use serde_json::Value;

use parse::{Expression, Node};

/// A template that cannot be understood, or does not fit what it is applied to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Not the language.
    #[error("template parsing error: {0}")]
    Syntax(String),
    /// No such field.
    #[error("template: can't evaluate field {field}: there is no such field")]
    NoField {
        /// Its name.
        field: String,
    },
    /// A function was given something that it cannot take.
    #[error("template: {0}")]
    Value(String),
}

/// A template that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Node>);

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self(parse::parse(&unescape(text))?))
    }

    /// Applies it to a value.
    ///
    /// # Errors
    /// [`TemplateError::NoField`] and [`TemplateError::Value`].
    pub fn apply(&self, to: &Value) -> Result<String, TemplateError> {
        let mut out = String::new();
        write_nodes(&self.0, to, to, &mut out)?;
        Ok(out)
    }

    /// The fields of the top level that are printed, in order; the heading of a table is made of them.
    #[must_use]
    pub fn fields(&self) -> Vec<String> {
        let mut fields = Vec::new();
        for node in &self.0 {
            if let Node::Print(expression) = node {
                collect_fields(expression, &mut fields);
            }
        }
        fields
    }

    /// The heading of a table with this template: every field's name as a column is called, text as it is.
    ///
    /// # Errors
    /// As [`Template::apply`].
    pub fn heading(&self, names: impl Fn(&str) -> String) -> Result<String, TemplateError> {
        let map = self.fields().into_iter().map(|field| {
            let name = names(&field);
            (field, Value::String(name))
        });
        let plain: Vec<Node> = self
            .0
            .iter()
            .map(|node| match node {
                Node::Print(expression) => {
                    let mut fields = Vec::new();
                    collect_fields(expression, &mut fields);
                    fields
                        .first()
                        .map_or(Node::Text(String::new()), |field| Node::Print(Expression::Field(vec![field.clone()])))
                }
                other => other.clone(),
            })
            .collect();
        Self(plain).apply(&Value::Object(map.collect()))
    }
}

fn collect_fields(expression: &Expression, fields: &mut Vec<String>) {
    match expression {
        Expression::Field(path) => fields.extend(path.first().cloned()),
        Expression::Call(_, arguments) => arguments.iter().for_each(|argument| collect_fields(argument, fields)),
        Expression::Root(_) | Expression::Literal(_) => {}
    }
}

/// `\t` and `\n` as shells pass them.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn write_nodes(nodes: &[Node], root: &Value, dot: &Value, out: &mut String) -> Result<(), TemplateError> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(expression) => out.push_str(&show(&evaluate(expression, root, dot)?)),
            Node::If(condition, then, otherwise) => {
                let branch = if is_true(&evaluate(condition, root, dot)?) { then } else { otherwise };
                write_nodes(branch, root, dot, out)?;
            }
            Node::With(condition, then, otherwise) => {
                let value = evaluate(condition, root, dot)?;
                if is_true(&value) {
                    write_nodes(then, root, &value, out)?;
                } else {
                    write_nodes(otherwise, root, dot, out)?;
                }
            }
            Node::Range(over, body, otherwise) => match evaluate(over, root, dot)? {
                Value::Array(items) if !items.is_empty() => {
                    items.iter().try_for_each(|item| write_nodes(body, root, item, out))?;
                }
                Value::Object(fields) if !fields.is_empty() => {
                    fields.values().try_for_each(|item| write_nodes(body, root, item, out))?;
                }
                Value::Array(_) | Value::Object(_) | Value::Null => write_nodes(otherwise, root, dot, out)?,
                other => return Err(TemplateError::Value(format!("range can't iterate over {}", show(&other)))),
            },
        }
    }
    Ok(())
}

fn evaluate(expression: &Expression, root: &Value, dot: &Value) -> Result<Value, TemplateError> {
    match expression {
        Expression::Literal(value) => Ok(value.clone()),
        Expression::Field(path) => field(dot, path),
        Expression::Root(path) => field(root, path),
        Expression::Call(name, arguments) => {
            let values: Vec<Value> =
                arguments.iter().map(|argument| evaluate(argument, root, dot)).collect::<Result<_, _>>()?;
            functions::call(name, &values)
        }
    }
}

fn field(value: &Value, path: &[String]) -> Result<Value, TemplateError> {
    let mut value = value;
    for name in path {
        value = match value {
            Value::Object(fields) => fields.get(name).ok_or_else(|| TemplateError::NoField { field: name.clone() })?,
            // Go prints "<no value>" for what lies behind nothing.
            Value::Null => return Ok(Value::Null),
            _ => return Err(TemplateError::NoField { field: name.clone() }),
        };
    }
    Ok(value.clone())
}

/// Go's truth: not zero, not empty.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// A value as Go's `%v` prints it.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("{name}:{}", show(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn applied(text: &str) -> String {
        let value = json!({
            "Name": "web", "State": {"Running": true, "ExitCode": 0, "Error": ""}, "Args": ["a", "b"],
            "Labels": {"x.y": "z"}, "None": null, "Mounts": [{"Type": "bind"}, {"Type": "tmpfs"}],
        });
        Template::parse(text).and_then(|template| template.apply(&value)).unwrap_or_else(|error| format!("! {error}"))
    }

    #[test]
    fn what_people_write_works() {
        for (text, expected) in [
            ("{{.Name}}", "web"),
            ("{{ .State.Running }} {{.State.ExitCode}}", "true 0"),
            ("{{json .State}}", r#"{"Error":"","ExitCode":0,"Running":true}"#),
            ("{{.Args}} {{.Labels}} {{.None}}", "[a b] map[x.y:z] <no value>"),
            ("{{range .Mounts}}{{.Type}},{{end}}", "bind,tmpfs,"),
            ("{{if .State.Error}}bad{{else}}good{{end}}", "good"),
            ("{{if not .State.Error}}good{{end}}", "good"),
            ("{{index .Labels \"x.y\"}} {{index .Args 1}} {{len .Args}}", "z b 2"),
            ("{{join .Args \", \"}}", "a, b"),
            ("{{upper .Name}}\\t{{lower \"ABC\"}}", "WEB\tabc"),
            ("{{range .Args}}{{$.Name}}-{{.}} {{end}}", "web-a web-b "),
            ("{{.Name | upper | json}}", "\"WEB\""),
            ("{{- .Name -}} ", "web"),
            ("{{with .State}}{{.ExitCode}}{{end}}{{with .None}}x{{else}}y{{end}}", "0y"),
            ("{{if .None}}1{{else if .Name}}2{{else}}3{{end}}{{/* nothing */}}", "2"),
            ("{{join (split \"a,b\" \",\") \"-\"}} {{truncate .Name 2}} {{pad .Name 1 2}}|", "a-b we  web  |"),
            (
                "{{slice .Name 1 2}} {{index (slice .Args 1) 0}} {{printf \"%s=%d %v %q%%\" .Name 5 true .Name}}",
                "e b web=5 true \"web\"%",
            ),
            ("{{and 1 .Name}} {{or .None \"x\"}} {{lt 1 2}} {{ge \"a\" \"b\"}}", "web x true false"),
            ("{{if eq .Name \"web\" \"db\"}}1{{end}}", "1"),
            ("plain", "plain"),
            (
                "{{json .}}",
                &json!({
                    "Name": "web", "State": {"Running": true, "ExitCode": 0, "Error": ""}, "Args": ["a", "b"],
                    "Labels": {"x.y": "z"}, "None": null, "Mounts": [{"Type": "bind"}, {"Type": "tmpfs"}],
                })
                .to_string(),
            ),
        ] {
            assert_eq!(applied(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_said() {
        assert_eq!(applied("{{.Nope}}"), "! template: can't evaluate field Nope: there is no such field");
        for bad in
            ["{{", "{{.Name", "{{range .Args}}", "{{end}}", "{{nofunction .Name}}", "{{}}", "{{else}}", "{{.Name.X}}"]
        {
            assert!(applied(bad).starts_with("! "), "{bad}");
        }
    }

    #[test]
    fn a_tables_heading_is_made_of_the_fields() {
        let template = Template::parse("{{.ID}}\\t{{upper .Name}}").unwrap();
        assert_eq!(template.fields(), ["ID", "Name"]);
        assert_eq!(template.heading(|field| field.to_uppercase()).unwrap(), "ID\tNAME");
    }
}
