//! Guards and scripts together.

use super::*;

fn stage(name: &str, script: &str) -> String {
    let lines: String = script.lines().map(|line| format!("      {line}\n")).collect();
    format!("  {name}:\n    script: |\n{lines}")
}

const REDACT: &str = "guards: {redact: [{kinds: [email]}]}\n";

const TEXT: &str = "I am ann@example.com, write";

#[tokio::test]
async fn scripts_behind_the_guards_see_placeholders() {
    let echo = Echo::start().await;
    let scripts = [
        ("on_request", "log.info('on_request <' .. json.encode(request.body) .. '>')"),
        ("on_upstream_request", "log.info('sent <' .. json.encode(request.body) .. '>')"),
        ("on_response", "log.info('told <' .. json.encode(response.body) .. '>')"),
        (
            "on_stream_event",
            "if event.content then log.info('event <' .. event.content .. '>') end return event",
        ),
    ];
    let hooks: String = scripts.iter().map(|(name, script)| stage(name, script)).collect();
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, &format!("{REDACT}hooks:\n{hooks}")).await;
        for client in LANGUAGES {
            for stream in [false, true] {
                echo.change(|m| m.piece = 1000);
                let heard = heard(&gateway, client, "", &says(client, stream, TEXT)).await;
                assert_eq!(heard.text, TEXT, "{client} {backend} {stream}");
            }
        }
        gateway.logs("event <I am [EMAIL_1], write>").await;
        let log = gateway.log();
        for line in log.lines().filter(|line| line.contains('<') && !line.contains("on_request <"))
        {
            assert!(!line.contains("ann@"), "{line}");
        }
        for word in ["sent <", "told <"] {
            let masked = |line: &str| line.contains(word) && line.contains("[EMAIL_1]");
            assert!(log.lines().any(masked), "{word}: {log}");
        }
        let early = |line: &str| line.contains("on_request <") && line.contains("ann@example.com");
        assert!(log.lines().any(early), "{log}");
    }
}

#[tokio::test]
async fn guards_see_what_scripts_write() {
    let echo = Echo::start().await;
    let script = "
if event.content == 'swap' then event.content = 'to [EMAIL_1]' return event end
if event.content == 'deny' then event.content = 'the nightfall' return event end
if event.content == 'stop' then return {stop = 'enough'} end";
    let more = format!(
        "guards: {{redact: [{{kinds: [email]}}], deny: [{{on: [answer], words: [nightfall]}}]}}\nhooks:\n{}",
        stage("on_stream_event", script)
    );
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, &more).await;
        for client in ["chat", "messages"] {
            let case = format!("{client} {backend}");
            echo.change(|m| (m.piece, m.says) = (4, Some("swapdone".to_owned())));
            let heard = heard(&gateway, client, "", &says(client, true, TEXT)).await;
            assert_eq!(heard.text, "to ann@example.comdone", "{case}");
            echo.change(|m| m.says = Some("Now deny".replace("Now ", "Now:")));
            let answer = ask(&gateway, client, "", &says(client, true, TEXT)).await;
            let heard = hear(client, true, &answer);
            assert!(!answer.text().contains("nightfall"), "{case}: {}", answer.text());
            assert!(heard.error.is_some() && heard.text.starts_with("Now:"), "{case}: {heard:?}");
            // What waits for the rest of a placeholder goes out before a script's end.
            echo.change(|m| m.says = Some("[EMAstop".to_owned()));
            let answer = ask(&gateway, client, "", &says(client, true, TEXT)).await;
            let heard = hear(client, true, &answer);
            assert_eq!(heard.text, "[EMA", "{case}: {}", answer.text());
            assert_eq!(heard.error.unwrap()["message"], "enough", "{case}");
        }
    }
}

#[tokio::test]
async fn an_operators_prompt_is_no_clients_text() {
    let echo = Echo::start().await;
    let more = format!(
        "{REDACT}system_prompts: {{prompts: [{{name: help, text: Send them to help@example.com.}}]}}\n"
    );
    let gateway = before(&echo.url, "chat", &more).await;
    let heard = heard(&gateway, "chat", "", &says("chat", true, TEXT)).await;
    assert_eq!(heard.text, TEXT);
    let seen = echo.last_json();
    assert_eq!(seen["messages"][0]["content"], "Send them to help@example.com.");
    assert_eq!(seen["messages"][1]["content"], "I am [EMAIL_1], write");
}
