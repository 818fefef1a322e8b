//! As much of JSON as the protocol, a kit's manifest and a safetensors header need.

use std::fmt::{self, Display, Write};
use std::iter::Peekable;
use std::str::Chars;

pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub fn parse(text: &str) -> Result<Json, String> {
        let mut reader = Reader(text.chars().peekable());
        let value = reader.value()?;
        match reader.token() {
            None => Ok(value),
            Some(extra) => Err(format!("there is {extra:?} behind the end of the JSON")),
        }
    }

    /// The value of a key; an error names the key.
    pub fn get(&self, key: &str) -> Result<&Json, String> {
        self.entries()?
            .iter()
            .find_map(|(name, value)| (name == key).then_some(value))
            .ok_or_else(|| format!("there is no key {key:?}"))
    }

    pub fn entries(&self) -> Result<&[(String, Json)], String> {
        match self {
            Json::Object(entries) => Ok(entries),
            other => Err(format!("{other} is no object")),
        }
    }

    pub fn list(&self) -> Result<&[Json], String> {
        match self {
            Json::List(values) => Ok(values),
            other => Err(format!("{other} is no list")),
        }
    }

    pub fn text(&self) -> Result<&str, String> {
        match self {
            Json::Text(text) => Ok(text),
            other => Err(format!("{other} is no string")),
        }
    }

    pub fn flag(&self) -> Result<bool, String> {
        match self {
            Json::Bool(flag) => Ok(*flag),
            other => Err(format!("{other} is neither true nor false")),
        }
    }

    pub fn integer(&self) -> Result<usize, String> {
        match self {
            Json::Number(number) if *number >= 0.0 && number.fract() == 0.0 => Ok(*number as usize),
            other => Err(format!("{other} is no non-negative integer")),
        }
    }

    pub fn integers(&self) -> Result<Vec<usize>, String> {
        self.list()?.iter().map(Json::integer).collect()
    }
}

/// What can be shown of a value in one word; for error messages.
impl Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(flag) => write!(f, "{flag}"),
            Json::Number(number) => write!(f, "{number}"),
            Json::Text(text) => f.write_str(&quoted(text)),
            Json::List(_) => f.write_str("a list"),
            Json::Object(_) => f.write_str("an object"),
        }
    }
}

struct Reader<'a>(Peekable<Chars<'a>>);

impl Reader<'_> {
    /// The next character that is no white space.
    fn token(&mut self) -> Option<char> {
        while self.0.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        self.0.next()
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        match self.token() {
            Some(found) if found == wanted => Ok(()),
            found => Err(format!("expected {wanted:?} in the JSON, found {found:?}")),
        }
    }

    fn value(&mut self) -> Result<Json, String> {
        match self.token() {
            Some('{') => Ok(Json::Object(self.items('}', |reader| {
                reader.expect('"')?;
                let key = reader.string()?;
                reader.expect(':')?;
                Ok((key, reader.value()?))
            })?)),
            Some('[') => Ok(Json::List(self.items(']', Reader::value)?)),
            Some('"') => Ok(Json::Text(self.string()?)),
            Some(first) => self.word(first),
            None => Err("the JSON ends too early".into()),
        }
    }

    /// What stands between brackets, parted by commas.
    fn items<T>(&mut self, end: char, item: impl Fn(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let mut found = Vec::new();
        while self.0.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if self.0.next_if_eq(&end).is_some() {
            return Ok(found);
        }
        loop {
            found.push(item(self)?);
            match self.token() {
                Some(',') => {}
                Some(c) if c == end => return Ok(found),
                other => return Err(format!("expected ',' or {end:?} in the JSON, found {other:?}")),
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.0.next() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escaped()?),
                Some(c) => text.push(c),
                None => return Err("a string in the JSON does not end".into()),
            }
        }
    }

    fn escaped(&mut self) -> Result<char, String> {
        match self.0.next() {
            Some('n') => Ok('\n'),
            Some('t') => Ok('\t'),
            Some('r') => Ok('\r'),
            Some('b') => Ok('\u{8}'),
            Some('f') => Ok('\u{c}'),
            Some(c @ ('"' | '\\' | '/')) => Ok(c),
            Some('u') => {
                let digits: String = self.0.by_ref().take(4).collect();
                let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                code.ok_or_else(|| format!("\\u{digits} in the JSON is no character"))
            }
            other => Err(format!("unknown escape {other:?} in the JSON")),
        }
    }

    fn word(&mut self, first: char) -> Result<Json, String> {
        let mut word = String::from(first);
        while let Some(c) = self.0.next_if(|c| c.is_ascii_alphanumeric() || "+-.".contains(*c)) {
            word.push(c);
        }
        match word.as_str() {
            "null" => Ok(Json::Null),
            "true" => Ok(Json::Bool(true)),
            "false" => Ok(Json::Bool(false)),
            _ => word.parse().map(Json::Number).map_err(|_| format!("{word:?} is no JSON")),
        }
    }
}

/// A string as JSON writes it.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => write!(out, "\\u{:04x}", c as u32).expect("a String takes everything"),
            c => out.push(c),
        }
    }
    out + "\""
}

/// A list as JSON writes it, of values that print as they are.
pub fn listed<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    format!("[{}]", values.join(","))
}
