//! Reads a template into nodes.

use serde_json::Value;

use super::TemplateError;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Text(String),
    Print(Expression),
    If(Expression, Vec<Node>, Vec<Node>),
    /// As `If`, and what was looked at is the new `.`.
    With(Expression, Vec<Node>, Vec<Node>),
    Range(Expression, Vec<Node>, Vec<Node>),
    /// `{{$name := ...}}`, until the end of the block.
    Declare(String, Expression),
    /// `{{$name = ...}}`
    Assign(String, Expression),
    /// What names a block has: those of its `range`, or the one of its `if` or `with`.
    Named(Vec<String>, Box<Node>),
}

/// What stands between the braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    /// `.A.B`; empty for `.`.
    Field(Vec<String>),
    /// `$.A.B`; empty for `$`.
    Root(Vec<String>),
    /// `$name.A.B`
    Variable(String, Vec<String>),
    /// `(...).A.B`
    Of(Box<Expression>, Vec<String>),
    Literal(Value),
    Call(String, Vec<Expression>),
}

const FUNCTIONS: [&str; 23] = [
    "json", "upper", "lower", "title", "println", "print", "printf", "len", "join", "split", "index", "slice",
    "truncate", "pad", "not", "and", "or", "eq", "ne", "lt", "le", "gt", "ge",
];

/// Text, or the inside of `{{...}}`.
enum Piece<'a> {
    Text(&'a str),
    Action(&'a str),
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, TemplateError> {
    let pieces = split(text)?;
    let mut rest = pieces.as_slice();
    let (nodes, ended_by) = block(&mut rest)?;
    match ended_by {
        None => Ok(nodes),
        Some(word) => Err(syntax(format!("unexpected {{{{{word}}}}}"))),
    }
}

fn syntax(what: impl Into<String>) -> TemplateError {
    TemplateError::Syntax(what.into())
}

fn split(mut text: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut pieces = Vec::new();
    let mut trim_next = false;
    loop {
        let Some((before, rest)) = text.split_once("{{") else {
            let last = if trim_next { text.trim_start() } else { text };
            pieces.push(Piece::Text(last));
            return Ok(pieces);
        };
        let (inside, after) = rest.split_once("}}").ok_or_else(|| syntax("unclosed action"))?;
        let before = if trim_next { before.trim_start() } else { before };
        let (inside, trim_before) = inside.strip_prefix("- ").map_or((inside, false), |inside| (inside, true));
        let (inside, trim_after) = inside.strip_suffix(" -").map_or((inside, false), |inside| (inside, true));
        pieces.push(Piece::Text(if trim_before { before.trim_end() } else { before }));
        pieces.push(Piece::Action(inside.trim()));
        trim_next = trim_after;
        text = after;
    }
}

/// Reads nodes until the end, `{{else}}` or `{{end}}`; says which it was.
fn block<'a>(rest: &mut &[Piece<'a>]) -> Result<(Vec<Node>, Option<&'a str>), TemplateError> {
    let mut nodes = Vec::new();
    while let Some((piece, after)) = rest.split_first() {
        *rest = after;
        match piece {
            Piece::Text("") => {}
            Piece::Text(text) => nodes.push(Node::Text((*text).to_owned())),
            Piece::Action("end") => return Ok((nodes, Some("end"))),
            Piece::Action(word) if *word == "else" || word.starts_with("else ") => return Ok((nodes, Some(word))),
            Piece::Action(comment) if comment.starts_with("/*") && comment.ends_with("*/") => {}
            Piece::Action(action) => nodes.push(statement(action, rest)?),
        }
    }
    Ok((nodes, None))
}

fn statement(action: &str, rest: &mut &[Piece<'_>]) -> Result<Node, TemplateError> {
    let (word, condition) = action.split_once(' ').unwrap_or((action, ""));
    let make: fn(Expression, Vec<Node>, Vec<Node>) -> Node = match word {
        "if" => Node::If,
        "with" => Node::With,
        "range" => Node::Range,
        _ => {
            return Ok(
                match declared(action, ":=")
                    .map(|found| (true, found))
                    .or(declared(action, "=").map(|found| (false, found)))
                {
                    Some((declares, (names, value))) => {
                        let [name] = &names[..] else { return Err(syntax("too many variables")) };
                        let make = if declares { Node::Declare } else { Node::Assign };
                        make(name.clone(), expression(value)?)
                    }
                    None => Node::Print(expression(action)?),
                },
            );
        }
    };
    let (names, condition) = declared(condition, ":=").unwrap_or((Vec::new(), condition));
    if names.len() > if word == "range" { 2 } else { 1 } {
        return Err(syntax("too many variables"));
    }
    let condition = expression(condition)?;
    let (then, ended_by) = block(rest)?;
    let otherwise = match ended_by {
        Some("else") => match block(rest)? {
            (otherwise, Some("end")) => otherwise,
            _ => return Err(syntax("{{else}} without {{end}}")),
        },
        // {{else if}} ends with the {{end}} of the whole.
        Some(word) if word.starts_with("else ") => vec![statement(word["else ".len()..].trim(), rest)?],
        Some(_) => Vec::new(),
        None => return Err(syntax(format!("{{{{{word}}}}} without {{{{end}}}}"))),
    };
    let node = make(condition, then, otherwise);
    Ok(if names.is_empty() { node } else { Node::Named(names, Box::new(node)) })
}

/// The variables to the left of `:=` or `=`, and what is to the right of it.
fn declared<'a>(text: &'a str, sign: &str) -> Option<(Vec<String>, &'a str)> {
    let (names, value) = text.split_once(sign)?;
    let names: Option<Vec<String>> = names
        .split(',')
        .map(|name| {
            let name = name.trim().strip_prefix('$')?;
            let is_name = !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
            is_name.then(|| name.to_owned())
        })
        .collect();
    Some((names?, value.trim()))
}

/// A pipeline: what is left of `|` becomes the last argument of what is right of it.
fn expression(text: &str) -> Result<Expression, TemplateError> {
    let tokens = tokens(text)?;
    let mut result: Option<Expression> = None;
    for command in tokens.split(|token| *token == Token::Pipe) {
        let mut parsed = command_of(command)?;
        if let Some(before) = result.take() {
            match &mut parsed {
                Expression::Call(_, arguments) => arguments.push(before),
                _ => return Err(syntax("only a function can stand behind |")),
            }
        }
        result = Some(parsed);
    }
    result.ok_or_else(|| syntax("missing value"))
}

fn command_of(tokens: &[Token]) -> Result<Expression, TemplateError> {
    match tokens {
        [] => Err(syntax("missing value")),
        [Token::Operand(operand)] => Ok(operand.clone()),
        [Token::Word(name), arguments @ ..] => {
            if !FUNCTIONS.contains(&name.as_str()) {
                return Err(syntax(format!("function {name:?} is not known")));
            }
            let operand = |token: &Token| match token {
                Token::Operand(operand) => Ok(operand.clone()),
                Token::Word(word) => Err(syntax(format!("{word:?} is no value"))),
                Token::Pipe => Err(syntax("misplaced |")),
            };
            Ok(Expression::Call(name.clone(), arguments.iter().map(operand).collect::<Result<_, _>>()?))
        }
        _ => Err(syntax("a value cannot be called")),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Operand(Expression),
    Pipe,
}

fn tokens(text: &str) -> Result<Vec<Token>, TemplateError> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '|' => {
                tokens.push(Token::Pipe);
                &rest[1..]
            }
            '(' => {
                let end = closing(rest).ok_or_else(|| syntax("unclosed parenthesis"))?;
                let inside = expression(&rest[1..end])?;
                let after = &rest[end + 1..];
                let end = if after.starts_with('.') { after.find(is_end).unwrap_or(after.len()) } else { 0 };
                tokens.push(Token::Operand(match &after[..end] {
                    "" => inside,
                    fields => Expression::Of(Box::new(inside), path(fields)?),
                }));
                &after[end..]
            }
            '"' | '`' | '\'' => {
                let end = rest[1..].find(first).ok_or_else(|| syntax("unclosed quote"))? + 1;
                tokens.push(Token::Operand(Expression::Literal(Value::from(&rest[1..end]))));
                &rest[end + 1..]
            }
            _ => {
                let end = rest.find(is_end).unwrap_or(rest.len());
                tokens.push(word(&rest[..end])?);
                &rest[end..]
            }
        }
        .trim_start();
    }
    Ok(tokens)
}

/// Where the parenthesis at the beginning of a text is closed.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0_usize, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`' | '\'') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') if depth == 1 => return Some(at),
            (None, ')') => depth = depth.checked_sub(1)?,
            (None, _) => {}
        }
    }
    None
}

/// What ends a word.
fn is_end(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '|' | '(')
}

/// The names of `.A.B`; none of `.` alone.
fn path(text: &str) -> Result<Vec<String>, TemplateError> {
    let names: Vec<String> = text.split('.').skip(1).map(str::to_owned).collect();
    match names.as_slice() {
        [only] if only.is_empty() => Ok(Vec::new()),
        names if names.iter().any(String::is_empty) => Err(syntax(format!("bad field {text:?}"))),
        _ => Ok(names),
    }
}

fn word(text: &str) -> Result<Token, TemplateError> {
    let operand = |expression| Ok(Token::Operand(expression));
    match text {
        "true" => operand(Expression::Literal(true.into())),
        "false" => operand(Expression::Literal(false.into())),
        "$" => operand(Expression::Root(Vec::new())),
        _ if text.starts_with("$.") => operand(Expression::Root(path(&text[1..])?)),
        _ if text.starts_with('$') => {
            let (name, fields) = text[1..].split_once('.').unwrap_or((&text[1..], ""));
            let fields = if fields.is_empty() { Vec::new() } else { path(&format!(".{fields}"))? };
            operand(Expression::Variable(name.to_owned(), fields))
        }
        _ if text.starts_with('.') => operand(Expression::Field(path(text)?)),
        _ => match text.parse::<i64>() {
            Ok(number) => operand(Expression::Literal(number.into())),
            Err(_) if text.chars().all(char::is_alphanumeric) => Ok(Token::Word(text.to_owned())),
            Err(_) => Err(syntax(format!("unexpected {text:?}"))),
        },
    }
}
