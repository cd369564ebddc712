//! The MQTT topics between gateways and the cloud, built and parsed here and nowhere else.
//!
//! `gemba/v1/{gateway}/up/{channel}` and `gemba/v1/{gateway}/down`. A topic only says where a frame goes;
//! whose it is, its signature says.

use crate::{ids::GatewayId, message::Lane};

const PREFIX: &str = "gemba/v1/";

/// What a topic towards the cloud carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    Lane(Lane),
    Live,
    /// `Status` and `CommandResult`.
    Status,
}

impl Channel {
    const ALL: [Self; 4] = [Self::Lane(Lane::Events), Self::Lane(Lane::Summaries), Self::Live, Self::Status];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lane(lane) => lane.as_str(),
            Self::Live => "live",
            Self::Status => "status",
        }
    }
}

/// Where a gateway publishes.
#[must_use]
pub fn up(gateway: GatewayId, channel: Channel) -> String {
    format!("{PREFIX}{gateway}/up/{}", channel.as_str())
}

/// Where a gateway listens.
#[must_use]
pub fn down(gateway: GatewayId) -> String {
    format!("{PREFIX}{gateway}/down")
}

/// What a gateway may publish to.
#[must_use]
pub fn up_filter(gateway: GatewayId) -> String {
    format!("{PREFIX}{gateway}/up/+")
}

/// What the cloud listens to.
#[must_use]
pub fn all_up_filter() -> String {
    format!("{PREFIX}+/up/+")
}

/// The gateway and the channel of a topic towards the cloud; `None` for any other topic.
#[must_use]
pub fn parse_up(topic: &str) -> Option<(GatewayId, Channel)> {
    let (gateway, rest) = topic.strip_prefix(PREFIX)?.split_once('/')?;
    let channel = rest.strip_prefix("up/")?;
    let channel = Channel::ALL.into_iter().find(|known| known.as_str() == channel)?;
    Some((gateway.parse().ok()?, channel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_builds_and_nothing_else() {
        let gateway = GatewayId::from_bytes([7; 16]);
        for channel in Channel::ALL {
            assert_eq!(parse_up(&up(gateway, channel)), Some((gateway, channel)));
        }
        let id = gateway.to_string();
        for other in [
            down(gateway),
            format!("gemba/v1/{id}/up/"),
            format!("gemba/v1/{id}/up/other"),
            format!("gemba/v1/{id}/up/events/x"),
            format!("gemba/v2/{id}/up/events"),
            "gemba/v1/x/up/events".into(),
            String::new(),
        ] {
            assert_eq!(parse_up(&other), None, "{other}");
        }
    }
}
