//! How values and names are written, whatever the writer's settings are.

use super::Ear;

/// Everything that can turn a value's text.
const SETTINGS: &str =
    "set timezone = 'Asia/Kolkata'; set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'; set bytea_output = 'escape';
    set extra_float_digits = -15; set quote_all_identifiers = on; set standard_conforming_strings = off; set xmloption = 'document'";

/// Type, value, and what is announced of it.
const TYPES: &[(&str, &str, &str)] = &[
    ("smallint", "-1", "-1"),
    ("bigint", "9223372036854775807", "9223372036854775807"),
    ("numeric", "1.00", "1.00"),
    ("numeric", "'NaN'", "NaN"),
    ("boolean", "true", "true"),
    ("uuid", "'00000000-0000-0000-0000-00000000000A'", "00000000-0000-0000-0000-00000000000a"),
    ("text", "E'q\"b\\\\n\\n\\t\\x01é😀'", "q\\\"b\\\\n\\n\\t\\u0001é😀"),
    ("text", "''", ""),
    ("varchar(3)", "'abc'", "abc"),
    ("char(5)", "'ab'", "ab   "),
    ("name", "'n'", "n"),
    ("bytea", "'\\xDEadbeef'", "deadbeef"),
    ("timestamptz", "'2020-01-01 12:00:00.123456+02'", "2020-01-01T10:00:00.123456Z"),
    ("timestamptz", "'infinity'", "infinity"),
    ("timestamptz", "'0044-03-15 12:00+00 BC'", "0044-03-15T12:00:00 BCZ"),
    ("timestamp", "'2020-01-01 12:00'", "2020-01-01T12:00:00"),
    ("timestamp", "'-infinity'", "-infinity"),
    ("date", "'2020-12-31'", "2020-12-31"),
    ("date", "'0044-03-15 BC'", "0044-03-15 BC"),
    ("date", "'infinity'", "infinity"),
    ("time", "'12:00'", "12:00:00"),
    ("timetz", "'12:00+05:30'", "12:00:00+05:30"),
    ("inet", "'10.0.0.1/8'", "10.0.0.1/8"),
    ("bit(3)", "B'101'", "101"),
    ("int[]", "'{1,NULL}'", "{1,NULL}"),
    ("text[]", "array['a', null, 'NULL', 'b \" c']", "{a,NULL,\\\"NULL\\\",\\\"b \\\\\\\" c\\\"}"),
    ("mood", "'so ''so'", "so 'so"),
    ("some_mood", "'sad'", "sad"),
    ("code", "'ab'", "ab   "),
    ("code_of_codes", "'cd'", "cd   "),
    ("stamp", "'2020-01-01 12:00+02'", "2020-01-01T10:00:00Z"),
    ("ints", "'{1}'", "{1}"),
    ("citext", "'CaSe'", "CaSe"),
    ("ci", "'CaSe'", "CaSe"),
];

/// Domains over everything, and casts by which a type's owner could have another text than its
/// output.
const DEFINITIONS: &str = "create extension citext; create type mood as enum ('sad', 'so ''so'); create domain some_mood as mood not null;
    create domain code as char(5); create domain code_of_codes as code; create domain stamp as timestamptz; create domain ints as int[];
    create domain ci as citext;
    create function cast_text(mood) returns text language sql as 'select ''evil'''; create cast (mood as text) with function cast_text(mood);
    create function cast_json(mood) returns json language sql as 'select ''1''::json'; create cast (mood as json) with function cast_json(mood)";

#[tokio::test]
async fn every_type_is_written_the_same_under_all_settings_or_refused() {
    let mut ear = Ear::after(DEFINITIONS).await;
    let columns: Vec<String> =
        TYPES.iter().enumerate().map(|(i, (kind, ..))| format!("c{i} {kind}")).collect();
    let template: Vec<String> = (0..TYPES.len()).map(|i| format!("{{c{i}}}")).collect();
    let values: Vec<&str> = TYPES.iter().map(|(_, value, _)| *value).collect();
    let template = format!("t:{}", template.join(":"));
    ear.hears(&format!(
        "create table t ({}); select unstale.watch('t', array['{template}'])",
        columns.join(", ")
    ))
    .await;
    let expected: Vec<String> =
        TYPES.iter().enumerate().map(|(i, (.., text))| format!(r#""c{i}":"{text}""#)).collect();
    let expected = format!(r#"1 "new":{{{}}}"#, expected.join(","));
    assert_eq!(
        ear.hears(&format!("insert into t values ({})", values.join(", "))).await,
        [expected.as_str()]
    );
    let mut session = ear.session().await;
    session.execute(SETTINGS).await;
    session.execute("update t set c0 = c0").await;
    assert_eq!(ear.hears("select 1").await, [expected.as_str()]);
    assert_eq!(
        session.value(&format!("select unstale.watch('t', array['{template}'])")).await,
        "unchanged"
    );
}

#[tokio::test]
async fn a_type_whose_text_depends_on_settings_is_refused_with_the_column_and_a_remedy() {
    let ear =
        Ear::after("create type mood as enum ('sad'); create type pair as (a int, b int)").await;
    for kind in [
        "float8",
        "real",
        "interval",
        "money",
        "jsonb",
        "xml",
        "int4range",
        "pair",
        "mood[]",
        "timestamptz[]",
        "regclass",
    ] {
        let sql = format!("create table t (c {kind}); select unstale.watch('t', array['t:{{c}}'])");
        let refusal = ear.refuses(&sql).await;
        assert!(
            refusal.contains("column c of public.t") && refusal.contains("generated"),
            "{kind}: {refusal}"
        );
    }
}

/// Equal values with another text make other keys. Equal by the type's `=` or not: where the text
/// differs, so does the key. `null` is a value like any other.
#[tokio::test]
async fn equal_values_with_another_text_are_another_key() {
    let mut ear = Ear::after(
        "create extension citext; create type mood as enum ('a', 'b'); create domain word as text;
         create collation loud (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    )
    .await;
    let changes = [
        ("citext", "a", "A"),
        ("numeric", "1.0", "1.00"),
        ("text collate loud", "a", "A"),
        ("varchar(9) collate loud", "a", "A"),
        ("text", "a", "A"),
        ("varchar(9)", "a", "a "),
        ("word", "a", "A"),
        ("mood", "a", "b"),
        ("bigint", "1", "2"),
        ("uuid", "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"),
        ("bytea", "\\x00", "\\x0000"),
    ];
    for (n, (kind, before, after)) in changes.into_iter().enumerate() {
        ear.hears(&format!(
            "create table t{n} (id int, c {kind}); select unstale.watch('t{n}', array['t:{{c}}'])"
        ))
        .await;
        ear.hears(&format!("insert into t{n} values (1, '{before}')")).await;
        for (value, new_key) in [
            (format!("'{before}'"), false),
            (format!("'{after}'"), true),
            ("null".to_owned(), true),
            ("null".to_owned(), false),
        ] {
            let heard = ear.hears(&format!("update t{n} set c = {value}")).await;
            assert_eq!(heard.len(), 1, "{kind} {value}: {heard:?}");
            assert_eq!(heard[0].contains("\"old\""), new_key, "{kind} {value}: {heard:?}");
        }
    }
}

/// Names that end strings, begin format codes, or are our own.
#[tokio::test]
async fn any_name_of_a_schema_table_or_column_will_do() {
    let table = r#""we ird'""é"."T%s $1 $f$ $body$ ""q"" 'x'""#;
    let long = "ä".repeat(31) + "x"; // 63 bytes
    let names = [
        "Id x",
        "a\"b",
        "c'd",
        "é%s\\",
        "t",
        "change",
        "same",
        "announced",
        "head",
        "old_row",
        "new_row",
        "old",
        "new",
        "x(new.y",
        "select",
        &long,
    ];
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let columns: Vec<String> = names.iter().map(|name| format!("{} text", quote(name))).collect();
    let template: Vec<String> =
        names.iter().map(|name| format!("{{{}}}", name.replace('\'', "''"))).collect();
    let (template, columns) = (template.join(":"), columns.join(", "));
    let mut ear = Ear::after(&format!(
        "create schema \"we ird'\"\"é\"; create table {table} ({columns}, updated_at timestamptz default now(), primary key (\"Id x\"));
         select unstale.watch('{}', array['t:{template}'], only_columns => '{{x(new.y,updated_at}}')",
        table.replace('\'', "''"),
    ))
    .await;
    let members: Vec<String> = names
        .iter()
        .map(|name| format!("{}:\"v\"", serde_json::to_string(name).expect("a text")))
        .collect();
    let row = format!("{{{}}}", members.join(","));
    let values = vec!["'v'"; names.len()].join(", ");
    assert_eq!(
        ear.hears(&format!("insert into {table} values ({values})")).await,
        [format!(r#"1 "new":{row}"#)]
    );
    let other = row.replace(r#""x(new.y":"v""#, r#""x(new.y":"w""#);
    assert_eq!(
        ear.hears(&format!(r#"update {table} set "x(new.y" = 'w'"#)).await,
        [format!(r#"1 "new":{other},"old":{row}"#)]
    );
    assert_eq!(ear.hears(&format!("delete from {table}")).await, [format!(r#"1 "old":{other}"#)]);
    assert_eq!(ear.rows("select table_name from unstale.watches").await, [table]);
}

#[tokio::test]
async fn tables_may_be_called_as_ours_are() {
    let mut ear = Ear::after(
        "create table watch (id int, watch int); create table change_log (id int, change text, xid int);
         create table \"timestamp\" (id int); create table watches (id int);
         select unstale.watch('watch', array['w:{watch}']), unstale.watch('change_log', array['c:{change}:{xid}']),
                unstale.watch('\"timestamp\"', array['t:{id}']), unstale.watch('watches', array['ws:{id}'])",
    )
    .await;
    let sql = "insert into watch values (1, 2); insert into change_log values (1, 'c', 3); insert into \"timestamp\" values (4); insert into watches values (5)";
    let expected = [
        r#"1 "new":{"watch":"2"}"#,
        r#"1 "new":{"change":"c","xid":"3"}"#,
        r#"1 "new":{"id":"4"}"#,
        r#"1 "new":{"id":"5"}"#,
    ];
    assert_eq!(ear.hears(sql).await, expected);
}

#[tokio::test]
async fn a_table_with_as_many_columns_as_there_can_be_is_watched() {
    let columns: Vec<String> = (1..=1600).map(|i| format!("c{i} int")).collect();
    let keys: Vec<String> = (1..=1600).map(|i| format!("'k:{{c{i}}}'")).collect();
    let mut ear = Ear::after(&format!(
        "create table wide ({}); select unstale.watch('wide', array[{}])",
        columns.join(", "),
        keys.join(", ")
    ))
    .await;
    let heard = ear.hears("insert into wide default values").await;
    assert_eq!(heard, [super::BELL], "it is longer than NOTIFY takes");
    ear.logged().await;
    ear.world.execute("update wide set c1600 = 7").await;
    let logged = ear.logged().await;
    assert!(
        logged.len() == 1
            && logged[0].contains(r#""c1600":"7"}"#)
            && logged[0].contains(r#""c1600":null}"#),
        "{logged:?}"
    );
}
