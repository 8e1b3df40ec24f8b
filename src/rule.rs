//! From a change to the Redis keys that it makes stale.
//!
//! Owns key templates and the rules compiled from the watches. Pure. The SQL in
//! migrations/repeatable/templates.sql refuses what this refuses; a test holds the two equal.
//! Refuses to make a key of anything but a known watch's templates.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::change::{Change, Malformed, Row, What};
use crate::deletion::Deletion;
use crate::few::Few;
use crate::watched::Watched;

/// A key template such as `user:{id}:profile`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Itself.
    Literal(String),
    /// The value of this column.
    Column(String),
}

/// Why a text is not a template. The sentences name the fix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    /// `}` without its `{`.
    #[error("key template '{0}': a }} closes nothing; write }}}} for a literal brace")]
    ClosesNothing(String),
    /// `{` without a column and its `}`.
    #[error(
        "key template '{0}': a {{ opens no column; write {{column}}, or {{{{ for a literal brace"
    )]
    OpensNothing(String),
    /// As a pattern it would match every key in Redis.
    #[error(
        "key template '{0}' has no literal part; put a prefix before the column, as in 'user:{{id}}'"
    )]
    NoLiteral(String),
}

impl Template {
    /// Reads a template: `{column}`, and `{{` or `}}` for a brace.
    ///
    /// # Errors
    /// [`TemplateError`] with the template and the fix.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = source;
        while let Some(first) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
                literal.push(first);
                rest = after;
            } else if first == '}' {
                return Err(TemplateError::ClosesNothing(source.to_owned()));
            } else if let Some(after) = rest.strip_prefix('{') {
                let (column, after) = after
                    .split_once('}')
                    .filter(|(column, _)| !column.is_empty() && !column.contains('{'))
                    .ok_or_else(|| TemplateError::OpensNothing(source.to_owned()))?;
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::Column(column.to_owned()));
                rest = after;
            } else {
                literal.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        if parts.iter().any(|part| matches!(part, Part::Literal(_))) {
            Ok(Self { parts })
        } else {
            Err(TemplateError::NoLiteral(source.to_owned()))
        }
    }

    /// Its pieces, in order; no two literals stand side by side.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The columns it names, in order, repeated where it repeats them.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// What a row makes of it: a key; nothing where a column is NULL; a pattern for all its keys
    /// where the row lacks a column. (Not one for each known value: that would be as many walks
    /// through Redis as there are rows.)
    #[must_use]
    pub fn render(&self, row: &Row<'_>) -> Option<Deletion> {
        if self.columns().any(|column| row.value(column) == Some(None)) {
            return None;
        }
        let is_whole = self.columns().all(|column| row.value(column).is_some());
        let mut text = String::with_capacity(48);
        for part in &self.parts {
            match part {
                Part::Literal(literal) if is_whole => text.push_str(literal),
                Part::Literal(literal) => escape_glob(literal, &mut text),
                Part::Column(column) if is_whole => {
                    text.push_str(row.value(column).flatten().unwrap_or_default())
                }
                Part::Column(_) => text.push('*'),
            }
        }
        Some(if is_whole { Deletion::Key(text) } else { Deletion::Pattern(text) })
    }
}

/// Appends `literal` as a glob that matches it and nothing else. Special outside of brackets are
/// `*`, `?`, `[` and the backslash (redis, util.c, `stringmatchlen`).
pub(crate) fn escape_glob(literal: &str, text: &mut String) {
    for c in literal.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
}

/// A watch, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `unstale.watch.id`.
    pub watch: i32,
    /// `unstale.watch.rev`.
    pub rev: i32,
    /// Schema and name, for people.
    pub table: String,
    /// Not in force any more; changes from before are still to be understood.
    pub ended: bool,
    /// Its readers hold leases, so that nobody can put back what was deleted.
    pub leased: bool,
    templates: Vec<Template>,
    columns: Vec<String>,
}

impl Rule {
    /// Compiles a watch.
    ///
    /// # Errors
    /// [`TemplateError`] if a template was put into `unstale.watch` past `unstale.watch()`.
    pub fn of(watched: &Watched) -> Result<Self, TemplateError> {
        let templates = watched
            .spec
            .keys
            .iter()
            .map(|key| Template::parse(key))
            .collect::<Result<Vec<_>, _>>()?;
        let mut columns: Vec<String> = Vec::new();
        for column in templates.iter().flat_map(Template::columns) {
            if !columns.iter().any(|known| known == column) {
                columns.push(column.to_owned());
            }
        }
        Ok(Self {
            watch: watched.id,
            rev: watched.rev,
            table: watched.table.clone(),
            ended: watched.ended,
            leased: watched.spec.guarantee.as_deref() == Some("lease"),
            templates,
            columns,
        })
    }

    /// What a change of this watch makes stale, handed to `stale` one by one, possibly repeated.
    ///
    /// A trigger of another revision may lack a column (a transaction that began before the watch
    /// changed): its templates widen to patterns. One of this revision has exactly the columns of
    /// the templates.
    ///
    /// # Errors
    /// [`Malformed`] if it does not; then nothing was handed out.
    pub fn stale(
        &self,
        change: &Change<'_>,
        mut stale: impl FnMut(Deletion),
    ) -> Result<(), Malformed> {
        match &change.what {
            What::All => self.everything().for_each(stale),
            What::Rows(rows) => {
                let exact = |row: &Row<'_>| {
                    row.0.len() == self.columns.len()
                        && self.columns.iter().all(|column| row.names(column))
                };
                if change.rev == self.rev && !rows.iter().all(exact) {
                    return Err(Malformed::Meaningless);
                }
                rows.iter().flat_map(|row| self.row(row)).for_each(&mut stale);
            }
        }
        Ok(())
    }

    /// What a row makes stale.
    pub fn row<'a>(&'a self, row: &'a Row<'a>) -> impl Iterator<Item = Deletion> + 'a {
        self.templates.iter().filter_map(|template| template.render(row))
    }

    /// Every key of the table: one pattern, or constant key, a template.
    pub fn everything(&self) -> impl Iterator<Item = Deletion> + '_ {
        static NOTHING_TOLD: Row<'static> = Row(Few::new());
        self.row(&NOTHING_TOLD)
    }

    /// The templates, in their order.
    #[must_use]
    pub fn templates(&self) -> &[Template] {
        &self.templates
    }

    /// The columns that the templates name.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The columns as a person reads them: `id, email`.
    #[must_use]
    pub fn columns_in_words(&self) -> String {
        let mut words = String::new();
        for (i, column) in self.columns.iter().enumerate() {
            let _ = write!(words, "{}{column}", if i > 0 { ", " } else { "" });
        }
        words
    }
}

/// The rules by watch.
pub type Rules = BTreeMap<i32, Rule>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row<'a>(columns: &[(&'a str, Option<&'a str>)]) -> Row<'a> {
        Row(columns
            .iter()
            .map(|(name, value)| ((*name).into(), Some(value.map(Into::into))))
            .collect())
    }

    fn rendered(template: &str, columns: &[(&str, Option<&str>)]) -> Option<Deletion> {
        Template::parse(template).expect("a template").render(&row(columns))
    }

    #[test]
    fn a_value_that_is_not_said_is_no_reason_to_refuse_the_change() {
        let rule = Rule::of(&Watched::of(1, 1, "t", &["user:{id}", "by:{email}"])).expect("a rule");
        let payload =
            r#"{"watch":1,"rev":1,"rows":[{"id":"1","email":true},{"id":"2","email":"x"}]}"#;
        let Ok(crate::change::Announcement::Change(change)) = crate::change::parse(payload) else {
            panic!("not a change")
        };
        let mut deletions = Vec::new();
        rule.stale(&change, |deletion| deletions.push(deletion)).expect("it is ours");
        let key = |key: &str| Deletion::Key(key.into());
        assert_eq!(
            deletions,
            [key("user:1"), Deletion::Pattern("by:*".into()), key("user:2"), key("by:x")]
        );
    }

    #[test]
    fn columns_become_values_and_double_braces_braces() {
        let key = |text: &str| Some(Deletion::Key(text.into()));
        assert_eq!(rendered("user:{id}:profile", &[("id", Some("42"))]), key("user:42:profile"));
        assert_eq!(
            rendered("{{user:{id}}}:profile", &[("id", Some("42"))]),
            key("{user:42}:profile")
        );
        assert_eq!(rendered("{a}-{b}-{a}", &[("a", Some("1")), ("b", Some(""))]), key("1--1"));
        assert_eq!(rendered("users:count", &[]), key("users:count"));
    }

    #[test]
    fn null_makes_no_key() {
        assert_eq!(rendered("by-email:{email}", &[("email", None)]), None);
        assert_eq!(rendered("{a}:{b}", &[("a", Some("1")), ("b", None)]), None);
    }

    #[test]
    fn where_a_column_is_not_told_columns_become_stars_and_the_rest_is_escaped() {
        let pattern = Some(Deletion::Pattern(r"q\?\[\*\]:*:*".into()));
        assert_eq!(rendered("q?[*]:{a}:{b}", &[("a", Some("1"))]), pattern);
    }

    #[test]
    fn a_template_that_cannot_be_used_is_refused_with_the_fix() {
        for (template, fix) in [
            ("user:{id", "{column}"),
            ("user:{}", "{column}"),
            ("user:{a{b}", "{column}"),
            ("user:id}", "}}"),
            ("{id}", "prefix"),
            ("{a}{b}", "prefix"),
            ("", "prefix"),
        ] {
            let error = Template::parse(template).expect_err(template).to_string();
            assert!(error.contains(fix) && error.contains(template), "{error}");
        }
    }

    #[test]
    fn another_revision_widens_and_the_same_one_must_be_exact() {
        let rule =
            Rule::of(&Watched::of(1, 2, "public.users", &["u:{id}", "e:{email}"])).expect("a rule");
        let stale = |rev, columns: &[(&str, Option<&str>)]| {
            let mut deletions = Vec::new();
            let change =
                Change { watch: 1, rev, what: What::Rows([row(columns)].into_iter().collect()) };
            rule.stale(&change, |deletion| deletions.push(deletion)).map(|()| deletions)
        };
        assert_eq!(
            stale(1, &[("id", Some("4"))]).expect("widens"),
            [Deletion::Key("u:4".into()), Deletion::Pattern("e:*".into())],
        );
        assert!(stale(2, &[("id", Some("4"))]).is_err());
        assert!(stale(2, &[("id", Some("4")), ("email", None), ("more", None)]).is_err());
        assert_eq!(
            stale(2, &[("id", Some("4")), ("email", None)]).expect("exact"),
            [Deletion::Key("u:4".into())]
        );
    }

    /// The matching of redis 7's `stringmatchlen`, as far as escaped literals and stars go.
    fn glob_matches(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|skip| glob_matches(rest, &text[skip..])),
            Some(('\\', rest)) if !rest.is_empty() => {
                text.first() == rest.first() && glob_matches(&rest[1..], &text[1..])
            }
            Some(('?' | '[', _)) => panic!("an unescaped special character"),
            Some((literal, rest)) => {
                text.first() == Some(literal) && glob_matches(rest, &text[1..])
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_template_or_refused(source in r"[{}a*\[\]\\?]{0,12}") {
            let _ = Template::parse(&source);
        }

        #[test]
        fn a_pattern_matches_every_key_of_its_template_and_keeps_its_literals(
            literal in r"[a-c*?\[\]\\:^-]{1,6}", value in r"[a-c*?\[\]\\:\r\n]{0,6}", other in r"[a-c*?\[\]\\:]{1,6}",
        ) {
            let template = Template::parse(&format!("{literal}{{id}}:end")).expect("a template");
            let Some(Deletion::Key(key)) = template.render(&row(&[("id", Some(&value))])) else { panic!("no key") };
            let Some(Deletion::Pattern(pattern)) = template.render(&Row::default()) else { panic!("no pattern") };
            let pattern: Vec<char> = pattern.chars().collect();
            let matches = |text: &str| glob_matches(&pattern, &text.chars().collect::<Vec<_>>());
            prop_assert!(matches(&key));
            let text = format!("{other}{value}:end");
            prop_assert_eq!(matches(&text), text.strip_prefix(&literal).is_some_and(|rest| rest.ends_with(":end")));
        }
    }
}
