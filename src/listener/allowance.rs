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

    /// The most recipients that a message of a login can ever have, for those whose limits are that small.
    pub fn most_recipients(users: &[User]) -> HashMap<String, usize> {
        let most = |user: &User| {
            let limits = user.limits.iter().filter(|limit| limit.counts == Counts::Recipients);
            let most = limits.map(|limit| usize::try_from(limit.max).unwrap_or(usize::MAX)).min()?;
            Some((user.name.clone(), most))
        };
        users.iter().filter_map(most).collect()
    }

    /// The leave of this login to hand in a message to so many recipients; `None` where it needs none.
    ///
    /// # Errors
    /// What to tell it: when to come again, or that it never may.
    pub async fn leave(&self, user: Option<&str>, recipients: usize) -> Result<Option<Permit>, Reply> {
        let Some((user, account)) = user.and_then(|user| self.0.get_key_value(user)) else { return Ok(None) };
        let key = key_of(user);
        let wanted = recipients as u64;
        let usage = account.usage();
        let limits = usage.iter().map(|usage| usage.limit);
        if let Some(limit) =
            limits.filter(|limit| limit.counts == Counts::Recipients).find(|l| l.max < wanted)
        {
            // A session takes no more recipients than that; but limits change, and there are other ways in.
            return Err(Reply::limit_too_small(&key, &limit.to_string()));
        }
        match account.take(recipients).await {
            // All of the message or nothing: what was accepted is not divided afterwards.
            Some(leave) if leave.recipients() < recipients => leave.withdraw(),
            Some(leave) => return Ok(Some(leave)),
            None => {}
        }
        let blocked = account.blocked().and_then(|blocked| blocked.until);
        let until = blocked.or_else(|| usage.iter().filter_map(|usage| usage.frees_at).min());
        Err(Reply::limit_reached(&key, until.map(|until| until.to_string()).as_deref()))
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

/// Where the limits of a login stand.
pub(super) fn key_of(user: &str) -> String {
    format!("smtp_users.{user}.rate_limit")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_limit;

    #[tokio::test]
    async fn what_can_never_fit_is_refused_for_good_and_what_can_is_told_when() {
        let directory = tempfile::tempdir().unwrap();
        let limits = vec![parse_limit("6 recipients/hour").unwrap(), parse_limit("100/day").unwrap()];
        let users = [User { name: "shop".to_owned(), password: None, senders: None, limits }];
        assert_eq!(Allowances::most_recipients(&users), HashMap::from([("shop".to_owned(), 6)]));
        let allowances = Allowances::of(&users, directory.path(), &Allowances::default(), &Clock::System);
        let leave = async |recipients| match allowances.leave(Some("shop"), recipients).await {
            Ok(leave) => {
                leave.expect("a permit").spent(crate::limits::account::Spent::For(recipients as u64));
                "taken".to_owned()
            }
            Err(reply) => reply.to_string(),
        };
        assert_eq!(leave(4).await, "taken");
        let later = leave(4).await;
        assert!(
            later.starts_with("451 4.7.1 ") && later.contains("rate_limit); try again later at "),
            "{later}"
        );
        let never = leave(7).await;
        assert!(never.starts_with("554 5.5.3 "), "{never}");
        assert!(never.contains("(smtp_users.shop.rate_limit: 6 recipients/hour)"), "{never}");
        assert!(allowances.leave(Some("crm"), 7).await.unwrap().is_none(), "whoever has no limit");
    }
}
