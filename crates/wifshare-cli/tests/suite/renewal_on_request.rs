//! With the delivery `environment`, no child can receive a new token. The run renews only when a process inside it
//! requests a token.

use wifshare_sandbox::{Fault, Settings};

use crate::job::{Job, living};
use crate::nesting::ask_the_gateway;
use crate::runner::Runner;

#[test]
fn environment_without_readers_makes_one_exchange() {
    let job = Job::new(living(2));
    let ended = job.exec(&["--delivery", "environment"], "sleep 9");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    job.assert_exchanges(1);
}

/// After one lifetime, two processes request a token at the same time.
const ASK_LATER: &str = r#"
    before=$ANTHROPIC_AUTH_TOKEN
    for i in 1 2 3; do
        sleep 4.2
        "$WIFSHARE" token > one & "$WIFSHARE" exec -- sh -c 'echo $ANTHROPIC_AUTH_TOKEN' > two || exit 21
        wait $! || exit 22
        [ "$(cat one)" = "$(cat two)" ] || exit 23
        [ "$(cat one)" != "$before" ] || exit 24
        before=$(cat one)
        [ "$("$WIFSHARE" token)" = "$before" ] || exit 25
    done
    rm one two"#;

#[test]
fn environment_renews_once_per_lifetime_on_request() {
    let job = Job::new(living(4));
    let ended = job.exec(&["--delivery", "environment"], ASK_LATER);
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
    job.assert_exchanges(4);
}

#[test]
fn later_steps_of_an_environment_keeper_get_a_fresh_token() {
    let mut runner = Runner::new(Job::new(living(4)));
    let steps = [r#""$WIFSHARE" start --delivery environment"#, ASK_LATER, r#""$WIFSHARE" stop"#];
    for step in steps {
        runner.steps_in_parallel(&[step.to_owned()]);
    }
    runner.job.assert_exchanges(4);
}

#[test]
fn gateway_inside_an_environment_run_triggers_its_renewal() {
    let job = Job::new(living(3));
    let ask = ask_the_gateway(&job);
    let asks = format!("for i in $(seq 12); do\n{ask}\n[ $? = 0 ] || exit 9\nsleep 0.5; done");
    std::fs::write(job.path("inner.sh"), asks).unwrap();
    let inner = r#""$WIFSHARE" exec --delivery gateway -- sh inner.sh"#;
    let ended = job.exec(&["--delivery", "environment"], inner);
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
    assert!(job.counters().exchanges_accepted >= 3, "{:#?}", job.counters());
    assert_eq!(job.counters().messages_refused, 0);
    job.assert_nothing_sent_twice();
}

#[test]
fn refused_renewal_is_reported_to_the_caller() {
    let refusals = vec![Fault::Status { status: 401, retry_after_s: None, commit: false }; 3];
    let job = Job::new(living(2));
    let script = r#"
        touch ready; while [ -e ready ]; do sleep 0.05; done; sleep 2
        "$WIFSHARE" token 2>&1"#;
    let child = job.wifshare(&["exec", "--delivery", "environment", "--", "sh", "-c", script]).spawn().unwrap();
    crate::job::eventually("the command runs", || job.path("ready").exists());
    job.sandbox.set_settings(Settings { exchange_faults: refusals, ..job.sandbox.settings() });
    let start = std::time::Instant::now();
    std::fs::remove_file(job.path("ready")).unwrap();
    let ended = crate::job::finish(child);
    assert!(start.elapsed().as_secs() < 15, "{:?}", start.elapsed());
    assert_eq!(ended.code, 125, "{} {}", ended.stdout, ended.stderr);
    assert!(ended.stdout.starts_with("error[exchange-refused]"), "{}", ended.stdout);
}

#[test]
fn inner_command_gets_the_first_token_if_renewal_fails() {
    let job = Job::new(living(2));
    let script = r#"
        touch ready; while [ -e ready ]; do sleep 0.05; done; sleep 2
        "$WIFSHARE" exec -- sh -c '[ -n "$ANTHROPIC_AUTH_TOKEN" ]' 2>&1"#;
    let child = job.wifshare(&["exec", "--delivery", "environment", "--", "sh", "-c", script]).spawn().unwrap();
    crate::job::eventually("the command runs", || job.path("ready").exists());
    let refusals = vec![Fault::Status { status: 401, retry_after_s: None, commit: false }; 3];
    job.sandbox.set_settings(Settings { exchange_faults: refusals, ..job.sandbox.settings() });
    std::fs::remove_file(job.path("ready")).unwrap();
    let ended = crate::job::finish(child);
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("warning: the command gets the token of before"), "{}", ended.stdout);
}
