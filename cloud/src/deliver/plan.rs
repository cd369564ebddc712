//! From notices to deliveries, and from held deliveries to digests: one program at a time, each batch as one.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use uuid::Uuid;

use super::Parts;
use crate::{
    alarms::Severity,
    notifications::{Channel, Hook, Person, Recent, Skip, When, message::Content, plan as planned_of},
    store::{
        StoreError, choices,
        deliveries::{self, Held},
        notices::{self, Unplanned},
        webhooks,
    },
};

/// Notices at a time.
const NOTICES_AT_ONCE: i64 = 200;

/// Does what there is to do, unless another program is at it.
pub(super) async fn plan(parts: &Parts, now: Timestamp) -> Result<(), StoreError> {
    let mut client = parts.store.client().await?;
    let transaction = client.transaction().await?;
    if !notices::lock(&transaction).await? {
        return Ok(());
    }
    let unplanned = notices::unplanned(&transaction, now, NOTICES_AT_ONCE).await?;
    let mut known = Known::default();
    for one in &unplanned {
        make(&transaction, parts, &mut known, one, now).await?;
    }
    gather(&transaction, now).await?;
    transaction.commit().await?;
    Ok(())
}

/// What one batch has read.
#[derive(Default)]
struct Known {
    people: HashMap<(Uuid, Uuid), Vec<Person>>,
    hooks: HashMap<Uuid, Vec<Hook>>,
    /// By organisation, and in it by recipient.
    recent: HashMap<Uuid, HashMap<Uuid, Recent>>,
}

async fn make(
    transaction: &Transaction<'_>,
    parts: &Parts,
    known: &mut Known,
    one: &Unplanned,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (organisation, site) = (one.organisation, one.notice.site);
    if let Entry::Vacant(unknown) = known.recent.entry(organisation) {
        unknown.insert(deliveries::recent(transaction, organisation, now).await?);
        known.hooks.insert(organisation, webhooks::hooks(transaction, organisation).await?);
    }
    if let Entry::Vacant(unknown) = known.people.entry((organisation, site)) {
        unknown.insert(choices::people(transaction, organisation, site).await?);
    }
    let recent = known.recent.entry(organisation).or_default();
    let people = known.people.entry((organisation, site)).or_default();
    let hooks = known.hooks.entry(organisation).or_default();
    for person in people.iter_mut() {
        person.recent = recent.get(&person.user).copied().unwrap_or_default();
    }
    for hook in hooks.iter_mut() {
        hook.recent = recent.get(&hook.id).copied().unwrap_or_default();
    }
    for planned in planned_of(&one.notice, people, hooks, parts.limits, parts.mailer.is_some(), now) {
        deliveries::insert(transaction, organisation, &one.facts, &planned, now).await?;
        if planned.when == When::Now {
            let recent = recent.entry(planned.to).or_default();
            recent.count += 1;
            recent.first.get_or_insert(now);
        }
    }
    notices::planned(transaction, one.facts.notice, now).await
}

/// Makes one delivery of those that were held for a recipient at a site.
async fn gather(transaction: &Transaction<'_>, now: Timestamp) -> Result<(), StoreError> {
    let held = deliveries::held(transaction, now).await?;
    if held.is_empty() {
        return Ok(());
    }
    let subjects: Vec<Uuid> = held.iter().map(|held| held.facts.subject()).collect();
    let open = notices::open(transaction, &subjects).await?;
    // A person wants to know what is still so; a program wants to know all.
    let (current, closed): (Vec<Held>, Vec<Held>) =
        held.into_iter().partition(|held| held.channel == Channel::Webhook || open.contains(&held.facts.subject()));
    let closed: Vec<Uuid> = closed.iter().map(|held| held.id).collect();
    deliveries::skip(transaction, &closed, Skip::Closed, None).await?;
    let mut groups: BTreeMap<(Uuid, Uuid), Vec<Held>> = BTreeMap::new();
    for held in current {
        groups.entry((held.to, held.site)).or_default().push(held);
    }
    for group in groups.into_values() {
        join(transaction, &group, now).await?;
    }
    Ok(())
}

async fn join(transaction: &Transaction<'_>, group: &[Held], now: Timestamp) -> Result<(), StoreError> {
    let Some(first) = group.first() else { return Ok(()) };
    let told = worth_telling(group);
    if let [one] = told.as_slice() {
        deliveries::release(transaction, one.id).await?;
        let others: Vec<Uuid> = group.iter().map(|held| held.id).filter(|id| *id != one.id).collect();
        return deliveries::skip(transaction, &others, Skip::InDigest, Some(one.id)).await;
    }
    let severity = told.iter().map(|held| held.severity).max().unwrap_or(Severity::Low);
    let content = Content::digest(told.iter().map(|held| held.facts.clone()).collect(), first.hold);
    let digest = deliveries::digest(transaction, first, severity, &content, now).await?;
    let ids: Vec<Uuid> = group.iter().map(|held| held.id).collect();
    deliveries::skip(transaction, &ids, Skip::InDigest, Some(digest)).await
}

/// For a person, the last word on each incident and ticket.
fn worth_telling(group: &[Held]) -> Vec<&Held> {
    let last = |(i, held): &(usize, &Held)| {
        let subject = held.facts.subject();
        held.channel == Channel::Webhook || !group[i + 1..].iter().any(|later| later.facts.subject() == subject)
    };
    group.iter().enumerate().filter(last).map(|(_, held)| held).collect()
}
