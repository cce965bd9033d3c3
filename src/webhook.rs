//! Telling a place on the web what happened: one POST of JSON, signed as Standard Webhooks has it.
//!
//! What is said of a failure never names more of the URL than its host: a path can be a secret.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac as _};
use secrecy::ExposeSecret as _;
use sha2::Sha256;
use tokio::time::timeout;

use crate::{clock::Timestamp, config::Webhook, delivery::post::post_to, smtp::sasl};

/// For the whole of a POST.
const LIMIT: Duration = Duration::from_secs(15);
/// The waits between tries: the first, and the longest.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_LONGEST: Duration = Duration::from_secs(300);

/// Posts a message of that id; the same id for the same message, however often it is tried.
///
/// # Errors
/// It was not taken; why, in words that hold no secret.
pub async fn tell(hook: &Webhook, id: &str, now: Timestamp, body: String) -> Result<(), String> {
    let seconds = (now.0 / 1_000).to_string();
    let signature = signature(hook, id, &seconds, &body);
    let fields = [
        ("content-type", "application/json"),
        ("user-agent", concat!("Outpost/", env!("CARGO_PKG_VERSION"))),
        ("webhook-id", id),
        ("webhook-timestamp", seconds.as_str()),
        ("webhook-signature", signature.as_str()),
    ];
    let posting = post_to(hook.url.expose_secret(), &fields, body.into_bytes(), LIMIT);
    match timeout(LIMIT, posting).await {
        Ok(Ok(status)) if (200..300).contains(&status) => Ok(()),
        Ok(Ok(status)) => Err(format!("it answers {status}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it does not answer within {} s", LIMIT.as_secs())),
    }
}

/// `v1,` and the HMAC of id, time and body.
fn signature(hook: &Webhook, id: &str, seconds: &str, body: &str) -> String {
    let secret = hook.secret.expose_secret();
    let decoded = secret.strip_prefix("whsec_").and_then(sasl::decode);
    let key = decoded.unwrap_or_else(|| secret.as_bytes().to_vec());
    let mut mac =
        <Hmac<Sha256> as KeyInit>::new_from_slice(&key).expect("because HMAC takes keys of any length");
    mac.update(format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", sasl::encode(mac.finalize().into_bytes()))
}

/// How long to wait behind so many failures in a row: twice as long with each, and never quite the same.
pub fn wait(failures: u32) -> Duration {
    let longest = WAIT_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(WAIT_LONGEST);
    longest.mul_f64(0.75 + 0.5 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        // The example of its specification.
        let hook = Webhook {
            url: "https://hooks.example".into(),
            secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(),
        };
        let body = "{\"test\": 2432232314}";
        assert_eq!(
            signature(&hook, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        assert_eq!(format!("{hook:?}"), "Webhook");
    }

    #[test]
    fn waits_grow_to_a_bound() {
        assert!((750..=1_250).contains(&wait(1).as_millis()));
        assert!((3_000..=5_000).contains(&wait(3).as_millis()));
        assert!((225..=375).contains(&wait(1_000).as_secs()));
    }
}
