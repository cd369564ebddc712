//! One client's connection, after its CONNECT was accepted: bytes in, decisions out.
//!
//! Answers to publishes leave in the order in which the publishes came, each when its message and all before it
//! are safe. The caller numbers what is safe as [`Session::messages`] counts.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

use super::{
    filter::{Filter, Interest, is_topic},
    packet::{self, Packet, ParseError, Publish, QoS, Will},
    session::Session,
};

/// Topics of which a connection remembers what to do with them.
const TOPICS_REMEMBERED_MAX: usize = 512;
/// A SUBSCRIBE waits for the broker's answer; no client needs many at once.
const SUBSCRIBES_WAITING_MAX: usize = 64;
/// The return code of a subscription that was refused.
const REFUSED: u8 = 0x80;

/// What a client may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The publisher's name; many clients may bear one.
    pub name: Arc<str>,
    pub publish: Vec<Filter>,
    pub subscribe: Vec<Filter>,
}

/// Bounds of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub packet_bytes_max: usize,
    pub topic_bytes_max: usize,
    /// Messages that were taken and are not yet safe: no more is read until some are.
    pub unacknowledged_max: usize,
    pub subscriptions_max: usize,
}

/// What one step decided; the caller takes it out and acts on it.
#[derive(Debug, Default)]
pub struct Output {
    /// For the client.
    pub reply: BytesMut,
    /// For the ingest, in this order.
    pub deliver: Vec<Publish>,
    /// For the broker, beside that.
    pub forward: Vec<Publish>,
    /// For the broker's connection of this client. Not empty: there must be one.
    pub broker: BytesMut,
    /// What the client now subscribes to, and did not before.
    pub subscribed: Vec<Filter>,
    pub unsubscribed: Vec<Filter>,
    /// The topic of the last publish that was not granted.
    pub not_granted: Option<Bytes>,
    pub tally: Tally,
}

/// What happened, in counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub packets: u64,
    /// Publishes that were taken.
    pub messages: u64,
    /// Resends of a message that was taken before.
    pub duplicates: u64,
    pub not_granted: u64,
    /// On a topic that begins with `$`.
    pub reserved_topic: u64,
    pub topic_too_long: u64,
    pub subscribe_refused: u64,
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// As it should: the will is not published.
    #[error("the client said good-bye")]
    Disconnect,
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error("the client broke the protocol: {0}")]
    Protocol(&'static str),
}

/// How far the buffer was worked off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// What is left, if anything, is the beginning of a packet.
    All,
    /// Too much is unsafe: call again when [`Connection::safe`] made room.
    Full,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    PubAck(u16),
    PubRec(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Taken { forward: bool },
    NotGranted,
    Reserved,
    TooLong,
}

#[derive(Debug)]
pub struct Connection {
    grant: Arc<Grant>,
    limits: Limits,
    session: Session,
    safe_through: u64,
    /// Answers, each to be given when the message of that number is safe.
    answers: VecDeque<(u64, Answer)>,
    routes: HashMap<Box<[u8]>, Route>,
    interest_version: u64,
    /// Publishes to the client: identifier, and whether the client answered.
    outgoing: VecDeque<(u16, bool)>,
    /// The answers to SUBSCRIBEs that wait for the broker.
    subscribing: HashMap<u16, Vec<u8>>,
}

impl Connection {
    /// `safe_through` is how many of the session's messages are safe by now.
    #[must_use]
    pub fn new(grant: Arc<Grant>, limits: Limits, session: Session, safe_through: u64) -> Self {
        Self {
            grant,
            limits,
            session,
            safe_through,
            answers: VecDeque::new(),
            routes: HashMap::new(),
            interest_version: 0,
            outgoing: VecDeque::new(),
            subscribing: HashMap::new(),
        }
    }

    /// Works off the packets in the client's buffer.
    ///
    /// # Errors
    /// When the connection is over; what is in `out` stands and is still to be done.
    pub fn receive(&mut self, buffer: &mut BytesMut, interest: &Interest, out: &mut Output) -> Result<Received, End> {
        if self.interest_version != interest.version() {
            self.interest_version = interest.version();
            self.routes.clear();
        }
        loop {
            while !self.is_full() {
                let Some(packet) = packet::parse(buffer, self.limits.packet_bytes_max)? else {
                    self.safe(self.safe_through, out);
                    return Ok(Received::All);
                };
                out.tally.packets += 1;
                match packet {
                    Packet::Publish(publish) => self.publish(publish, interest, out)?,
                    other => self.other(other, out)?,
                }
            }
            // Answers that wait for nothing (of resends, of what was refused) make room by themselves.
            self.safe(self.safe_through, out);
            if self.is_full() {
                return Ok(Received::Full);
            }
        }
    }

    /// Messages through this number are safe: gives the answers that waited for it.
    pub fn safe(&mut self, through: u64, out: &mut Output) {
        self.safe_through = self.safe_through.max(through);
        while let Some(&(number, answer)) = self.answers.front() {
            if number > self.safe_through {
                break;
            }
            self.answers.pop_front();
            match answer {
                Answer::PubAck(id) => Packet::PubAck(id),
                Answer::PubRec(id) => Packet::PubRec(id),
            }
            .write(&mut out.reply);
        }
    }

    /// Works off the packets that the broker sent for this client.
    ///
    /// # Errors
    /// When the broker broke the protocol.
    pub fn receive_from_broker(&mut self, buffer: &mut BytesMut, out: &mut Output) -> Result<(), End> {
        // The broker writes headers of its own around what passed the limit before.
        let bytes_max = self.limits.packet_bytes_max + packet::FILTERS_MAX + 16;
        while let Some(packet) = packet::parse(buffer, bytes_max)? {
            match packet {
                Packet::Publish(publish) => {
                    if publish.qos != QoS::AtMostOnce {
                        self.outgoing.push_back((publish.id, false));
                    }
                    publish.write(&mut out.reply);
                }
                Packet::SubAck { id, codes } => self.subscribed(id, &codes, out),
                Packet::UnsubAck(_) | Packet::PingResp => {}
                _ => return Err(End::Protocol("an unexpected packet from the broker")),
            }
        }
        Ok(())
    }

    /// Messages that were taken and are not yet safe.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        self.session.messages() - self.safe_through.min(self.session.messages())
    }

    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    #[must_use]
    pub fn into_session(self) -> Session {
        self.session
    }

    /// The last message of a client that is gone without a good-bye, where its grant covers it.
    pub fn will(&mut self, will: Will, interest: &Interest, out: &mut Output) {
        let qos = will.qos.min(QoS::AtLeastOnce);
        let topic = Bytes::from(will.topic);
        let publish = Publish { dup: false, qos, retain: will.retain, topic, id: 0, payload: will.payload };
        if let Ok(Route::Taken { forward }) = self.route(&publish.topic, interest) {
            self.take(publish, forward, out);
        }
    }

    /// Whether a will on this topic would be published.
    #[must_use]
    pub fn grants_will(grant: &Grant, topic: &str) -> bool {
        is_topic(topic) && !topic.starts_with('$') && grant.publish.iter().any(|filter| filter.matches(topic))
    }

    /// Whether too much is unsafe for more to be read.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let unacknowledged = usize::try_from(self.unacknowledged()).unwrap_or(usize::MAX);
        unacknowledged.max(self.answers.len()) >= self.limits.unacknowledged_max
    }

    fn publish(&mut self, publish: Publish, interest: &Interest, out: &mut Output) -> Result<(), End> {
        let (qos, id) = (publish.qos, publish.id);
        let refused = match self.route(&publish.topic, interest)? {
            Route::Taken { forward } => {
                let number = self.repeated(&publish).inspect(|_| out.tally.duplicates += 1);
                let number = match number {
                    Some(number) => number,
                    None => self.take_new(publish, forward, out)?,
                };
                self.answer(number, qos, id);
                return Ok(());
            }
            Route::NotGranted => {
                out.not_granted = Some(publish.topic);
                &mut out.tally.not_granted
            }
            Route::Reserved => &mut out.tally.reserved_topic,
            Route::TooLong => &mut out.tally.topic_too_long,
        };
        *refused += 1;
        self.answer(self.session.messages(), qos, id);
        Ok(())
    }

    fn repeated(&self, publish: &Publish) -> Option<u64> {
        match publish.qos {
            QoS::AtLeastOnce if publish.dup => self.session.repeated(publish),
            QoS::AtMostOnce | QoS::AtLeastOnce => None,
            QoS::ExactlyOnce => self.session.unreleased(publish.id),
        }
    }

    fn take_new(&mut self, publish: Publish, forward: bool, out: &mut Output) -> Result<u64, End> {
        let number = self.session.messages() + 1;
        match publish.qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.session.remember(&publish, number, self.limits.unacknowledged_max),
            QoS::ExactlyOnce => {
                if self.session.unreleased_count() >= self.limits.unacknowledged_max {
                    return Err(End::Protocol("more QoS 2 messages without PUBREL than are allowed"));
                }
                self.session.hold(publish.id, number);
            }
        }
        self.take(publish, forward, out);
        Ok(number)
    }

    fn take(&mut self, publish: Publish, forward: bool, out: &mut Output) {
        self.session.count();
        out.tally.messages += 1;
        if forward || publish.retain {
            let qos = publish.qos.min(QoS::AtLeastOnce);
            out.forward.push(Publish { qos, dup: false, ..publish.clone() });
        }
        out.deliver.push(publish);
    }

    fn answer(&mut self, number: u64, qos: QoS, id: u16) {
        match qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.answers.push_back((number, Answer::PubAck(id))),
            QoS::ExactlyOnce => self.answers.push_back((number, Answer::PubRec(id))),
        }
    }

    fn route(&mut self, topic: &Bytes, interest: &Interest) -> Result<Route, End> {
        if let Some(&route) = self.routes.get(&topic[..]) {
            return Ok(route);
        }
        if topic.len() > self.limits.topic_bytes_max {
            return Ok(Route::TooLong);
        }
        let text = std::str::from_utf8(topic).ok().filter(|topic| is_topic(topic));
        let text = text.ok_or(End::Protocol("a topic that is empty, not UTF-8 or has wildcards"))?;
        let route = if text.starts_with('$') {
            Route::Reserved
        } else if self.grant.publish.iter().any(|filter| filter.matches(text)) {
            Route::Taken { forward: interest.wants(text) }
        } else {
            Route::NotGranted
        };
        if self.routes.len() >= TOPICS_REMEMBERED_MAX {
            self.routes.clear();
        }
        self.routes.insert(topic[..].into(), route);
        Ok(route)
    }

    fn other(&mut self, packet: Packet, out: &mut Output) -> Result<(), End> {
        match packet {
            Packet::PubRel(id) => {
                self.session.release(id);
                Packet::PubComp(id).write(&mut out.reply);
            }
            Packet::PubAck(id) => self.acknowledged(id, out),
            Packet::Subscribe { id, filters } => self.subscribe(id, filters, out)?,
            Packet::Unsubscribe { id, filters } => self.unsubscribe(id, &filters, out),
            Packet::PingReq => Packet::PingResp.write(&mut out.reply),
            Packet::Disconnect => return Err(End::Disconnect),
            Packet::Connect(_) => return Err(End::Protocol("a second CONNECT")),
            _ => return Err(End::Protocol("a packet that only a server sends")),
        }
        Ok(())
    }

    /// The broker wants answers in the order in which it sent; not every client keeps to that.
    fn acknowledged(&mut self, id: u16, out: &mut Output) {
        if let Some(waiting) = self.outgoing.iter_mut().find(|(sent, answered)| *sent == id && !answered) {
            waiting.1 = true;
        }
        while let Some(&(id, true)) = self.outgoing.front() {
            self.outgoing.pop_front();
            Packet::PubAck(id).write(&mut out.broker);
        }
    }

    fn subscribe(&mut self, id: u16, filters: Vec<(String, QoS)>, out: &mut Output) -> Result<(), End> {
        let mut codes = Vec::with_capacity(filters.len());
        let mut granted = Vec::new();
        for (text, qos) in filters {
            let filter = Filter::new(&text).map_err(|_| End::Protocol("a SUBSCRIBE to no valid filter"))?;
            let allowed = !text.starts_with('$')
                && text.len() <= self.limits.topic_bytes_max
                && self.session.subscription_count() < self.limits.subscriptions_max
                && self.grant.subscribe.iter().any(|grant| grant.covers(&filter));
            if !allowed {
                out.tally.subscribe_refused += 1;
                codes.push(REFUSED);
                continue;
            }
            let qos = qos.min(QoS::AtLeastOnce);
            codes.push(qos as u8);
            if self.session.subscribe(filter.clone(), qos) {
                out.subscribed.push(filter);
            }
            granted.push((text, qos));
        }
        if granted.is_empty() {
            Packet::SubAck { id, codes }.write(&mut out.reply);
            return Ok(());
        }
        if self.subscribing.len() >= SUBSCRIBES_WAITING_MAX {
            return Err(End::Protocol("more SUBSCRIBEs at once than are allowed"));
        }
        Packet::Subscribe { id, filters: granted }.write(&mut out.broker);
        self.subscribing.insert(id, codes);
        Ok(())
    }

    /// The broker's codes stand where the grant allowed the filter.
    fn subscribed(&mut self, id: u16, broker: &[u8], out: &mut Output) {
        let Some(mut codes) = self.subscribing.remove(&id) else { return };
        for (code, &granted) in codes.iter_mut().filter(|code| **code != REFUSED).zip(broker) {
            *code = granted;
        }
        Packet::SubAck { id, codes }.write(&mut out.reply);
    }

    /// One UNSUBSCRIBE for each filter, and only for those that the broker knows: it answers no others.
    fn unsubscribe(&mut self, id: u16, filters: &[String], out: &mut Output) {
        for text in filters {
            let Ok(filter) = Filter::new(text) else { continue };
            if self.session.unsubscribe(&filter) {
                out.unsubscribed.push(filter);
                Packet::Unsubscribe { id, filters: vec![text.clone()] }.write(&mut out.broker);
            }
        }
        Packet::UnsubAck(id).write(&mut out.reply);
    }
}

#[cfg(test)]
mod tests;
