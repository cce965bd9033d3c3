//! What a login may hand in, at most: `rate_limit` of `smtp_users`.

use std::{collections::HashMap, path::Path};

use crate::{
    clock::Clock,
    config::{Counts, User},
    limits::account::{Account, Permit, Usage},
    smtp::reply::Reply,
};

/// The accounts of the logins that have limits.
#[derive(Clone, Debug, Default)]
pub struct Allowances(HashMap<String, Account>);

impl Allowances {
    /// Accounts for these logins, whose files lie in `directory`; those of before stay.
    pub fn of(users: &[User], directory: &Path, old: &Self, clock: &Clock) -> Self {
        let limited = users.iter().filter(|user| !user.limits.is_empty());
        let account = |user: &User| match old.0.get(&user.name) {
            Some(account) => {
                account.change(&user.limits);
                account.clone()
            }
            None => Account::open(directory, &format!("login {}", user.name), &user.limits, clock.clone()),
        };
        Self(limited.map(|user| (user.name.clone(), account(user))).collect())
    }

    /// The leave of this login to hand in a message to so many recipients; `None` where it needs none.
    ///
    /// # Errors
    /// What to tell it: when to come again, or that it never may.
    pub async fn leave(&self, user: Option<&str>, recipients: usize) -> Result<Option<Permit>, Reply> {
        let Some(account) = user.and_then(|user| self.0.get(user)) else { return Ok(None) };
        let wanted = recipients as u64;
        let usage = account.usage();
        let limits = usage.iter().map(|usage| usage.limit);
        if let Some(limit) =
            limits.filter(|limit| limit.counts == Counts::Recipients).find(|l| l.max < wanted)
        {
            return Err(Reply::limit_too_small(&limit.to_string()));
        }
        match account.take(recipients).await {
            // All of the message or nothing: what was accepted is not divided afterwards.
            Some(leave) if leave.recipients() < recipients => leave.withdraw(),
            Some(leave) => return Ok(Some(leave)),
            None => {}
        }
        let blocked = account.blocked().and_then(|blocked| blocked.until);
        let until = blocked.or_else(|| usage.iter().filter_map(|usage| usage.frees_at).min());
        Err(Reply::limit_reached(until.map(|until| until.to_string()).as_deref()))
    }

    /// How much each login has used, by their names.
    pub fn usage(&self) -> Vec<(String, Vec<Usage>)> {
        let mut all: Vec<_> = self.0.iter().map(|(name, account)| (name.clone(), account.usage())).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Writes down what was really used, at a good end.
    pub fn close(&self) {
        self.0.values().for_each(Account::close);
    }
}
