//! What happens to messages, told to `smtp_event_webhook`, in batches and in their order.
//!
//! What is to be told waits in the history, and only the place in it is kept: however long nobody
//! answers, nothing gathers here, and nothing is forgotten by a restart. A batch can come twice.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::{sync::watch, time::sleep};

use super::{Admin, Answer, Desk, alerts, events::Wanted};
use crate::{config::Webhook, observe::Told, webhook};
use axum::extract::FromRef as _;

/// How often it is looked for what has happened.
const LOOK: Duration = Duration::from_millis(500);
/// Events of one batch.
const BATCH: usize = 100;
/// The file's name in the data directory.
const NAME: &str = "event_webhook.json";

/// How far it was told, and who.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    after: Option<i64>,
    /// A digest of the URL: whoever is new there gets what happens from then on.
    #[serde(default)]
    of: Option<String>,
}

impl Place {
    /// The place for this hook: begun anew where it is another than before, or there is none any more.
    fn for_hook(&self, hook: Option<&Webhook>) -> Self {
        let of = hook.map(|hook| digest(hook.url.expose_secret()));
        match &of {
            Some(digest) if self.of.as_ref().is_none_or(|known| known == digest) => {
                Self { after: self.after, of }
            }
            _ => Self { after: None, of },
        }
    }
}

/// A URL can be a secret, so no more of it is kept than tells it from others.
fn digest(url: &str) -> String {
    Sha256::digest(url).iter().take(8).fold(String::new(), |text, octet| format!("{text}{octet:02x}"))
}

/// Tells what happens, until the process ends.
pub async fn forward(admin: Admin, mut shutdown: watch::Receiver<bool>) {
    let path = admin.settings.load().data.join(NAME);
    let desk = Desk::from_ref(&admin);
    let mut place: Place = alerts::read(&path).await;
    let (mut failures, mut wait) = (0, LOOK);
    loop {
        tokio::select! {
            () = sleep(wait) => {}
            _ = shutdown.wait_for(|shutdown| *shutdown) => return,
        }
        wait = LOOK;
        let settings = admin.settings.load_full();
        let hook = settings.webhooks.events.as_ref();
        let now = place.for_hook(hook);
        if now != place {
            (place, failures) = (now, 0);
            alerts::write(&path, &place).await;
        }
        let Some(hook) = hook else { continue };
        // What can't be read now is read later.
        let Ok(after) = begin(&desk, &place).await else { continue };
        let wanted = Wanted { cursor: Some(after.to_string()), limit: Some(BATCH), ..Wanted::default() };
        let Ok(page) = desk.events(wanted).await else { continue };
        let last = page.items.last().and_then(|event| event.seq);
        let Some(last) = last else {
            if place.after.is_none() {
                place.after = Some(after);
                alerts::write(&path, &place).await;
            }
            continue;
        };
        let id = format!("events_{after}_{last}");
        let body = json!({
            "type": "events",
            "timestamp": admin.clock.now().to_string(),
            "data": { "service": settings.service, "hostname": settings.hostname, "items": page.items },
        });
        match tell(&admin, hook, &id, body.to_string()).await {
            Ok(()) => {
                if failures > 0 {
                    tracing::info!("smtp_event_webhook can be reached again");
                }
                (failures, place.after) = (0, Some(last));
                alerts::write(&path, &place).await;
                if page.next.is_some() {
                    wait = Duration::ZERO;
                }
            }
            Err(reason) => {
                failures += 1;
                wait = webhook::wait(failures);
                if failures == 1 {
                    tracing::warn!("smtp_event_webhook can't be told; trying on: {reason}");
                }
            }
        }
    }
}

/// Behind which event to go on; at first, behind the latest.
async fn begin(desk: &Desk, place: &Place) -> Answer<i64> {
    match place.after {
        Some(after) => Ok(after),
        None => {
            let newest = desk.events(Wanted { limit: Some(1), ..Wanted::default() }).await?;
            Ok(newest.items.last().and_then(|event| event.seq).unwrap_or(0))
        }
    }
}

async fn tell(admin: &Admin, hook: &Webhook, id: &str, body: String) -> Result<(), String> {
    let told = webhook::tell(hook, id, admin.clock.now(), body).await;
    admin.observer.metrics().webhook("event", if told.is_ok() { Told::delivered } else { Told::failed });
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_url_and_a_hook_that_was_gone_begin_anew() {
        let hook = |url: &str| Webhook { url: url.into(), secret: "sesame".into() };
        let (one, other) = (hook("https://one.example/path-4711"), hook("https://other.example/"));
        let place = Place { after: Some(7), ..Place::default() }.for_hook(Some(&one));
        assert_eq!(place.after, Some(7));
        assert_eq!(place.for_hook(Some(&one)), place);
        assert_eq!(place.for_hook(Some(&other)).after, None);
        assert_eq!(place.for_hook(None), Place::default());
        assert_eq!(place.for_hook(None).for_hook(Some(&one)).after, None);
        assert!(!serde_json::to_string(&place).unwrap().contains("4711"));
    }
}
