//! `unstale policy`: the document, and what is missing of it.

use crate::support::daemon::command;
use crate::support::world::World;

/// Its exit code, the document, and the complaint.
fn policy(world: &World, arguments: &str) -> (Option<i32>, String, String) {
    let output = command(
        &format!("policy {arguments}"),
        &[("DATABASE_URL", &world.database_url()), ("REDIS_URL", &world.redis_url())],
    );
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const SAID: &str = "select unstale.watch('users', array['user:{id}:profile', 'user:by-email:{email}', 'users'], max_ttl => '1 hour',
    guarantee => 'lease', reason => 'read on every page | changed rarely', version => 'updated_at', version_path => '$.updated_at')";

#[tokio::test]
async fn it_says_of_each_cache_what_was_promised_and_why() {
    let world = World::new().await;
    world.execute("create table users (id int, email text, updated_at timestamptz); create table visits (id int)").await;
    world.execute(SAID).await;
    world.execute("select unstale.watch('visits', array['visits:{id}'], delivery => 'log')").await;
    let (code, text, _) = policy(&world, "");
    assert_eq!(code, Some(0));
    for part in [
        "## public.users\n\n| | |\n|---|---|\n| keys | `user:{id}:profile`, `user:by-email:{email}`, `users` |\n",
        "| guarantee | lease: readers hold one, so that nothing older than a delivered change is stored again |\n",
        "| longest life | 1h |\n| why | read on every page \\| changed rarely |\n",
        "| deleted | when it is announced, or from the log; after a gap by `updated_at` and the log |\n",
        "| version | `updated_at` at `$.updated_at` |\n",
        "| last audited | never |\n",
        "## public.visits",
        "| guarantee | not said |\n",
        "| deleted | from the log; after a gap by the log, where every change is |\n",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
}

#[tokio::test]
async fn it_says_what_the_last_audit_has_found() {
    let mut world = World::new().await;
    world.execute("create table users (id int, email text, updated_at timestamptz); insert into users values (1, 'a', now())").await;
    world.execute(SAID).await;
    world.fill(["user:1:profile", "user:2:profile"]);
    let urls = [("DATABASE_URL", world.database_url()), ("REDIS_URL", world.redis_url())];
    let audited = command("audit --all", &urls.each_ref().map(|(name, url)| (*name, url.as_str())));
    assert_eq!(audited.status.code(), Some(1), "a row of user:2:profile is gone: {audited:?}");
    let (_, text, _) = policy(&world, "");
    assert!(text.contains("Z, all: 1 of 1 cached values stale, 1 without a version |\n"), "{text}");
    let (_, text, _) = policy(&world, "--json");
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let audited = &document["watches"][0]["audited"];
    assert!(
        audited["stale"] == 1
            && audited["complete"] == true
            && audited["at"].as_str().is_some_and(|at| at.ends_with('Z')),
        "{audited}"
    );
}

#[tokio::test]
async fn a_check_fails_until_everything_is_said_and_every_key_is_covered() {
    let mut world = World::new().await;
    world.execute("create table users (id int, email text, updated_at timestamptz)").await;
    world.execute("select unstale.watch('users', array['user:{id}:profile'])").await;
    world.fill([
        "user:1:profile",
        "user:1:settings",
        "user:by-email:a@b.c",
        "users",
        "unstale:mark:x",
        "order:1",
    ]);
    let (code, text, complaint) = policy(&world, "--check --json");
    assert_eq!(code, Some(1), "{complaint}");
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let missing: Vec<&str> = document["missing"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|text| text.as_str())
        .collect();
    assert_eq!(missing.len(), 4, "{missing:?}");
    for (sentence, part) in missing.iter().zip([
        "no guarantee",
        "no longest life",
        "no reason",
        "2 keys begin with \"user:\"",
    ]) {
        assert!(sentence.contains(part), "{sentence}");
    }
    assert!(
        missing[3].contains("user:1:settings") && missing[3].contains("user:by-email:a@b.c"),
        "{}",
        missing[3]
    );
    assert!(complaint.contains("lacks 4 things"), "{complaint}");

    world.execute(SAID).await;
    let (code, text, complaint) = policy(&world, "--check");
    assert!(
        code == Some(1)
            && text
                .contains("1 key begins with \"user:\" and no watch deletes them: user:1:settings"),
        "{text}{complaint}"
    );
    world.cache.ask(&["del", "user:1:settings"]).expect("Redis answers");
    let (code, text, complaint) = policy(&world, "--check");
    assert!(code == Some(0) && !text.contains("Missing"), "{text}{complaint}");
}
