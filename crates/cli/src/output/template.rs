//! `--format`: the part of Go's text/template that people use with Docker.
//!
//! Fields (`{{.State.Status}}`, `{{(index .X 0).Y}}`), the functions of [`functions`], pipelines, parentheses, variables,
//! `{{range .X}}...{{end}}`, `{{range $k, $v := .X}}`, `{{if .X}}...{{else if .Y}}...{{else}}...{{end}}`, `{{with .X}}...{{end}}`,
//! comments, `\t` and `\n`. No templates in templates, no `break`.

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
        write_nodes(&self.0, &mut Scope { root: to, variables: Vec::new() }, to, &mut out)?;
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
        Expression::Of(expression, _) => collect_fields(expression, fields),
        Expression::Root(_) | Expression::Variable(..) | Expression::Literal(_) => {}
    }
}

/// `\t` and `\n` as shells pass them.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// What names mean.
struct Scope<'a> {
    root: &'a Value,
    /// The innermost is the last.
    variables: Vec<(String, Value)>,
}

impl Scope<'_> {
    fn variable(&mut self, name: &str) -> Result<&mut Value, TemplateError> {
        let found = self.variables.iter_mut().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| value).ok_or_else(|| TemplateError::Syntax(format!("undefined variable \"${name}\"")))
    }

    /// Writes a block that has variables of its own.
    fn block(
        &mut self,
        named: impl IntoIterator<Item = (String, Value)>,
        nodes: &[Node],
        dot: &Value,
        out: &mut String,
    ) -> Result<(), TemplateError> {
        let outside = self.variables.len();
        self.variables.extend(named);
        let written = write_nodes(nodes, self, dot, out);
        self.variables.truncate(outside);
        written
    }
}

fn write_nodes(nodes: &[Node], scope: &mut Scope<'_>, dot: &Value, out: &mut String) -> Result<(), TemplateError> {
    nodes.iter().try_for_each(|node| write_node(node, &[], scope, dot, out))
}

/// Shape: `names` are those that the node's block has for what it looks at.
fn write_node(
    node: &Node,
    names: &[String],
    scope: &mut Scope<'_>,
    dot: &Value,
    out: &mut String,
) -> Result<(), TemplateError> {
    let named = |value: &Value| names.first().map(|name| (name.clone(), value.clone()));
    match node {
        Node::Text(text) => out.push_str(text),
        Node::Print(expression) => out.push_str(&show(&evaluate(expression, scope, dot)?)),
        Node::Named(names, node) => write_node(node, names, scope, dot, out)?,
        Node::Declare(name, expression) => {
            let value = evaluate(expression, scope, dot)?;
            scope.variables.push((name.clone(), value));
        }
        Node::Assign(name, expression) => {
            let value = evaluate(expression, scope, dot)?;
            *scope.variable(name)? = value;
        }
        Node::If(condition, then, otherwise) => {
            let value = evaluate(condition, scope, dot)?;
            let branch = if is_true(&value) { then } else { otherwise };
            scope.block(named(&value), branch, dot, out)?;
        }
        Node::With(condition, then, otherwise) => {
            let value = evaluate(condition, scope, dot)?;
            let (branch, dot) = if is_true(&value) { (then, &value) } else { (otherwise, dot) };
            scope.block(named(&value), branch, dot, out)?;
        }
        Node::Range(over, body, otherwise) => {
            let over = evaluate(over, scope, dot)?;
            let items: Vec<(Value, &Value)> = match &over {
                Value::Array(items) => items.iter().enumerate().map(|(at, item)| (at.into(), item)).collect(),
                Value::Object(fields) => fields.iter().map(|(name, item)| (name.as_str().into(), item)).collect(),
                Value::Null => Vec::new(),
                other => return Err(TemplateError::Value(format!("range can't iterate over {}", show(other)))),
            };
            if items.is_empty() {
                return scope.block(None, otherwise, dot, out);
            }
            for (key, item) in items {
                let named = match names {
                    [] => Vec::new(),
                    [one] => vec![(one.clone(), item.clone())],
                    [first, second, ..] => vec![(first.clone(), key), (second.clone(), item.clone())],
                };
                scope.block(named, body, item, out)?;
            }
        }
    }
    Ok(())
}

fn evaluate(expression: &Expression, scope: &mut Scope<'_>, dot: &Value) -> Result<Value, TemplateError> {
    match expression {
        Expression::Literal(value) => Ok(value.clone()),
        Expression::Field(path) => field(dot, path),
        Expression::Root(path) => field(scope.root, path),
        Expression::Variable(name, path) => field(scope.variable(name)?, path),
        Expression::Of(expression, path) => field(&evaluate(expression, scope, dot)?, path),
        Expression::Call(name, arguments) => {
            let values: Vec<Value> =
                arguments.iter().map(|argument| evaluate(argument, scope, dot)).collect::<Result<_, _>>()?;
            functions::call(name, &values)
        }
    }
}

/// Fields that are maps, of which no key must be there. All others are known to Go by name.
const MAPS: [&str; 9] =
    ["Annotations", "Attributes", "DriverOpts", "ExposedPorts", "Labels", "Networks", "Options", "Ports", "Sysctls"];

fn field(value: &Value, path: &[String]) -> Result<Value, TemplateError> {
    let mut value = value;
    for (at, name) in path.iter().enumerate() {
        value = match value {
            Value::Object(fields) => match fields.get(name) {
                Some(value) => value,
                None if at > 0 && MAPS.contains(&path[at - 1].as_str()) => return Ok(Value::Null),
                None => return Err(TemplateError::NoField { field: name.clone() }),
            },
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
            "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]},
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
            ("{{range $i, $e := .Args}}{{$i}}={{$e}} {{end}}", "0=a 1=b "),
            ("{{range $name, $value := .Labels}}{{$name}}: {{$value}}{{end}}", "x.y: z"),
            ("{{range $e := .Args}}{{$e}}{{.}}{{end}}{{range $e := .None}}x{{else}}y{{end}}", "aabby"),
            ("{{$n := .Name}}{{with .State}}{{$n}} {{$n = .ExitCode}}{{end}}{{$n}}", "web 0"),
            ("{{$s := .State}}{{$s.ExitCode}}{{if $x := .Name}}{{$x}}{{end}}", "0web"),
            ("{{(index .Mounts 1).Type}} {{(index (slice .Mounts 1) 0).Type | upper}}", "tmpfs TMPFS"),
            ("{{range $p, $conf := .Ports}}{{$p}} -> {{(index $conf 0).HostPort}} {{end}}", "80/tcp -> 8080 "),
            ("{{(index (index .Ports \"80/tcp\") 0).HostPort}}", "8080"),
            ("{{.Labels.nope}}|{{index .Labels \"nope\"}}|{{index .None \"nope\"}}|", "<no value>|||"),
            ("plain", "plain"),
            (
                "{{json .}}",
                &json!({
                    "Name": "web", "State": {"Running": true, "ExitCode": 0, "Error": ""}, "Args": ["a", "b"],
                    "Labels": {"x.y": "z"}, "None": null, "Mounts": [{"Type": "bind"}, {"Type": "tmpfs"}],
                    "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]},
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
        for bad in [
            "{{",
            "{{.Name",
            "{{range .Args}}",
            "{{end}}",
            "{{nofunction .Name}}",
            "{{}}",
            "{{else}}",
            "{{.Name.X}}",
            "{{$x}}",
            "{{$x = 1}}",
            "{{if $x := 1}}{{end}}{{$x}}",
            "{{range $a, $b, $c := .Args}}{{end}}",
            "{{$a, $b := .Args}}",
        ] {
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
