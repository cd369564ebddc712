//! MQTT 3.1.1 packets (OASIS, 29 October 2014), read from and written to bytes.
//!
//! [`parse`] takes one packet from the front of a buffer, once all of it is there. It never reads beyond the
//! packet, allocates nothing that grows with what a header claims, and the topic and payload of a PUBLISH are
//! slices of the buffer. Topics are not looked at here: whoever routes them checks them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The most filters in one SUBSCRIBE or UNSUBSCRIBE.
pub const FILTERS_MAX: usize = 256;
/// The longest fixed header.
const FIXED_HEADER_BYTES_MAX: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum QoS {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl QoS {
    fn from_bits(bits: u8) -> Result<Self, ParseError> {
        match bits {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            2 => Ok(Self::ExactlyOnce),
            _ => Err(ParseError::Malformed("a QoS of 3")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    pub dup: bool,
    pub qos: QoS,
    pub retain: bool,
    /// As it was sent: not checked.
    pub topic: Bytes,
    /// Zero at `QoS` 0, and never otherwise.
    pub id: u16,
    pub payload: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    pub qos: QoS,
    pub retain: bool,
    pub topic: String,
    pub payload: Bytes,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    pub clean_session: bool,
    pub keep_alive_s: u16,
    pub client_id: String,
    pub will: Option<Will>,
    pub username: Option<String>,
    pub password: Option<Bytes>,
}

/// Without the password.
impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect")
            .field("client_id", &self.client_id)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// The return code of a CONNACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectCode {
    Accepted = 0,
    UnacceptableVersion = 1,
    IdentifierRejected = 2,
    ServerUnavailable = 3,
    BadCredentials = 4,
    NotAuthorised = 5,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Connect(Box<Connect>),
    ConnAck { session_present: bool, code: u8 },
    Publish(Publish),
    PubAck(u16),
    PubRec(u16),
    PubRel(u16),
    PubComp(u16),
    Subscribe { id: u16, filters: Vec<(String, QoS)> },
    SubAck { id: u16, codes: Vec<u8> },
    Unsubscribe { id: u16, filters: Vec<String> },
    UnsubAck(u16),
    PingReq,
    PingResp,
    Disconnect,
}

/// Why bytes are no packet. The connection cannot go on after any of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("not MQTT 3.1.1: {0}")]
    Malformed(&'static str),
    #[error("a packet of {0} bytes, more than is allowed")]
    TooLarge(usize),
    #[error("protocol level {0}: only MQTT 3.1.1 (level 4) is spoken here")]
    Version(u8),
}

/// Takes the first packet out of the buffer; `None` while it is not all there.
///
/// # Errors
/// If the buffer does not begin with a packet of at most `bytes_max` bytes.
pub fn parse(buffer: &mut BytesMut, bytes_max: usize) -> Result<Option<Packet>, ParseError> {
    let Some((header, length)) = fixed_header(buffer)? else { return Ok(None) };
    let total = header + length;
    if total > bytes_max {
        return Err(ParseError::TooLarge(total));
    }
    if buffer.len() < total {
        return Ok(None);
    }
    let first = buffer[0];
    let mut body = buffer.split_to(total).freeze();
    body.advance(header);
    read(first, body).map(Some)
}

/// How many bytes the first packet of the buffer has in all, once its header is there. Nonsense is `None`.
#[must_use]
pub fn length(buffer: &[u8]) -> Option<usize> {
    fixed_header(buffer).ok().flatten().map(|(header, length)| header + length)
}

/// The length of the fixed header and of what follows it.
fn fixed_header(buffer: &[u8]) -> Result<Option<(usize, usize)>, ParseError> {
    let mut length = 0;
    for (i, &byte) in buffer.iter().enumerate().take(FIXED_HEADER_BYTES_MAX).skip(1) {
        length |= usize::from(byte & 0x7f) << (7 * (i - 1));
        if byte & 0x80 == 0 {
            return Ok(Some((i + 1, length)));
        }
    }
    if buffer.len() >= FIXED_HEADER_BYTES_MAX {
        return Err(ParseError::Malformed("a length of more than four bytes"));
    }
    Ok(None)
}

fn read(first: u8, mut body: Bytes) -> Result<Packet, ParseError> {
    let (kind, flags) = (first >> 4, first & 0xf);
    if kind == 3 {
        return publish(flags, body).map(Packet::Publish);
    }
    let flags_expected = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
    if flags != flags_expected {
        return Err(ParseError::Malformed("reserved flags are set"));
    }
    let body_ = &mut body;
    let packet = match kind {
        1 => Packet::Connect(Box::new(connect(body_)?)),
        2 => Packet::ConnAck { session_present: u8(body_)? & 1 == 1, code: u8(body_)? },
        4 => Packet::PubAck(id(body_)?),
        5 => Packet::PubRec(id(body_)?),
        6 => Packet::PubRel(id(body_)?),
        7 => Packet::PubComp(id(body_)?),
        8 => subscribe(body_)?,
        9 => Packet::SubAck { id: id(body_)?, codes: body_.split_off(0).to_vec() },
        10 => unsubscribe(body_)?,
        11 => Packet::UnsubAck(id(body_)?),
        12 => Packet::PingReq,
        13 => Packet::PingResp,
        14 => Packet::Disconnect,
        _ => return Err(ParseError::Malformed("a packet type that is reserved")),
    };
    if kind == 9 || body.is_empty() {
        Ok(packet)
    } else {
        Err(ParseError::Malformed("bytes after the end of a packet"))
    }
}

fn publish(flags: u8, mut body: Bytes) -> Result<Publish, ParseError> {
    let qos = QoS::from_bits(flags >> 1 & 3)?;
    let topic = bytes(&mut body)?;
    let id = if qos == QoS::AtMostOnce { 0 } else { id(&mut body)? };
    Ok(Publish { dup: flags & 8 != 0, qos, retain: flags & 1 != 0, topic, id, payload: body })
}

fn connect(body: &mut Bytes) -> Result<Connect, ParseError> {
    let protocol = bytes(body)?;
    let level = u8(body)?;
    if level != 4 || &protocol[..] != b"MQTT" {
        let known = matches!(&protocol[..], b"MQTT" | b"MQIsdp");
        return Err(if known { ParseError::Version(level) } else { ParseError::Malformed("another protocol") });
    }
    let flags = u8(body)?;
    let keep_alive_s = u16(body)?;
    let client_id = text(body)?;
    if flags & 1 != 0 {
        return Err(ParseError::Malformed("reserved flags are set"));
    }
    let will = if flags & 4 != 0 {
        let (topic, payload) = (text(body)?, bytes(body)?);
        Some(Will { qos: QoS::from_bits(flags >> 3 & 3)?, retain: flags & 0x20 != 0, topic, payload })
    } else if flags & 0x38 != 0 {
        return Err(ParseError::Malformed("flags of a will without a will"));
    } else {
        None
    };
    let (has_username, has_password) = (flags & 0x80 != 0, flags & 0x40 != 0);
    if has_password && !has_username {
        return Err(ParseError::Malformed("a password without a user name"));
    }
    let username = if has_username { Some(text(body)?) } else { None };
    let password = if has_password { Some(bytes(body)?) } else { None };
    Ok(Connect { clean_session: flags & 2 != 0, keep_alive_s, client_id, will, username, password })
}

fn subscribe(body: &mut Bytes) -> Result<Packet, ParseError> {
    let id = id(body)?;
    let mut filters = Vec::new();
    while !body.is_empty() {
        let filter = text(body)?;
        let options = u8(body)?;
        if options > 3 {
            return Err(ParseError::Malformed("reserved flags are set"));
        }
        push(&mut filters, (filter, QoS::from_bits(options)?))?;
    }
    if filters.is_empty() {
        return Err(ParseError::Malformed("a SUBSCRIBE to nothing"));
    }
    Ok(Packet::Subscribe { id, filters })
}

fn unsubscribe(body: &mut Bytes) -> Result<Packet, ParseError> {
    let id = id(body)?;
    let mut filters = Vec::new();
    while !body.is_empty() {
        push(&mut filters, text(body)?)?;
    }
    if filters.is_empty() {
        return Err(ParseError::Malformed("an UNSUBSCRIBE from nothing"));
    }
    Ok(Packet::Unsubscribe { id, filters })
}

fn push<T>(filters: &mut Vec<T>, filter: T) -> Result<(), ParseError> {
    if filters.len() >= FILTERS_MAX {
        return Err(ParseError::Malformed("more filters in one packet than are allowed"));
    }
    filters.push(filter);
    Ok(())
}

const SHORT: ParseError = ParseError::Malformed("a packet that ends too early");

fn u8(body: &mut Bytes) -> Result<u8, ParseError> {
    body.try_get_u8().map_err(|_| SHORT)
}

fn u16(body: &mut Bytes) -> Result<u16, ParseError> {
    body.try_get_u16().map_err(|_| SHORT)
}

fn id(body: &mut Bytes) -> Result<u16, ParseError> {
    match u16(body)? {
        0 => Err(ParseError::Malformed("a packet identifier of zero")),
        id => Ok(id),
    }
}

fn bytes(body: &mut Bytes) -> Result<Bytes, ParseError> {
    let length = usize::from(u16(body)?);
    if length > body.len() {
        return Err(SHORT);
    }
    Ok(body.split_to(length))
}

fn text(body: &mut Bytes) -> Result<String, ParseError> {
    let bytes = bytes(body)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(ParseError::Malformed("a text that is not UTF-8 without U+0000")),
    }
}

impl Packet {
    /// Appends the packet. Texts of more than 65,535 bytes cannot be written in MQTT: the caller has none.
    pub fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Connect(connect) => write_connect(connect, out),
            Self::ConnAck { session_present, code } => {
                out.put_slice(&[0x20, 2, u8::from(*session_present), *code]);
            }
            Self::Publish(publish) => publish.write(out),
            Self::PubAck(id) => with_id(0x40, *id, out),
            Self::PubRec(id) => with_id(0x50, *id, out),
            Self::PubRel(id) => with_id(0x62, *id, out),
            Self::PubComp(id) => with_id(0x70, *id, out),
            Self::Subscribe { id, filters } => {
                put_header(0x82, 2 + filters.iter().map(|(filter, _)| 3 + filter.len()).sum::<usize>(), out);
                out.put_u16(*id);
                for (filter, qos) in filters {
                    put_bytes(filter.as_bytes(), out);
                    out.put_u8(*qos as u8);
                }
            }
            Self::SubAck { id, codes } => {
                put_header(0x90, 2 + codes.len(), out);
                out.put_u16(*id);
                out.put_slice(codes);
            }
            Self::Unsubscribe { id, filters } => {
                put_header(0xa2, 2 + filters.iter().map(|filter| 2 + filter.len()).sum::<usize>(), out);
                out.put_u16(*id);
                for filter in filters {
                    put_bytes(filter.as_bytes(), out);
                }
            }
            Self::UnsubAck(id) => with_id(0xb0, *id, out),
            Self::PingReq => out.put_slice(&[0xc0, 0]),
            Self::PingResp => out.put_slice(&[0xd0, 0]),
            Self::Disconnect => out.put_slice(&[0xe0, 0]),
        }
    }
}

impl Publish {
    pub fn write(&self, out: &mut BytesMut) {
        let first = 0x30 | u8::from(self.dup) << 3 | (self.qos as u8) << 1 | u8::from(self.retain);
        let id_bytes = if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        put_header(first, 2 + self.topic.len() + id_bytes + self.payload.len(), out);
        put_bytes(&self.topic, out);
        if id_bytes > 0 {
            out.put_u16(self.id);
        }
        out.put_slice(&self.payload);
    }
}

fn write_connect(connect: &Connect, out: &mut BytesMut) {
    let mut flags = u8::from(connect.clean_session) << 1;
    let mut fields = vec![connect.client_id.as_bytes()];
    if let Some(will) = &connect.will {
        flags |= 4 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
        fields.extend([will.topic.as_bytes(), &will.payload]);
    }
    if let Some(username) = &connect.username {
        flags |= 0x80;
        fields.push(username.as_bytes());
    }
    if let Some(password) = &connect.password {
        flags |= 0x40;
        fields.push(password);
    }
    put_header(0x10, 10 + fields.iter().map(|field| 2 + field.len()).sum::<usize>(), out);
    put_bytes(b"MQTT", out);
    out.put_slice(&[4, flags]);
    out.put_u16(connect.keep_alive_s);
    for field in fields {
        put_bytes(field, out);
    }
}

fn with_id(first: u8, id: u16, out: &mut BytesMut) {
    let [high, low] = id.to_be_bytes();
    out.put_slice(&[first, 2, high, low]);
}

fn put_header(first: u8, mut length: usize, out: &mut BytesMut) {
    out.reserve(FIXED_HEADER_BYTES_MAX + length);
    out.put_u8(first);
    loop {
        let digit = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            out.put_u8(digit);
            return;
        }
        out.put_u8(digit | 0x80);
    }
}

fn put_bytes(bytes: &[u8], out: &mut BytesMut) {
    debug_assert!(u16::try_from(bytes.len()).is_ok(), "a text is too long for MQTT");
    out.put_u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
    out.put_slice(bytes);
}

#[cfg(test)]
mod tests;
