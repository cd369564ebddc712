//! Where a request comes from: an address, also behind proxies, and the request's id.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use axum::{
    extract::{ConnectInfo, FromRequestParts, Request},
    http::{Extensions, HeaderName, request::Parts},
};
use ipnet::IpNet;
use uuid::Uuid;

use crate::users::peers;

/// What every proxy writes, and no standard says.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// The client's, not that of a proxy that is trusted.
    pub address: IpAddr,
    /// What the answer says as `x-request-id`.
    pub request: Uuid,
}

impl<S: Send + Sync> FromRequestParts<S> for Source {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(known(&parts.extensions))
    }
}

/// What was found out when the request came.
pub(super) fn known(extensions: &Extensions) -> Source {
    let unknown = Source { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), request: Uuid::nil() };
    extensions.get::<Source>().copied().unwrap_or(unknown)
}

/// Where a request that gets this id comes from, if these proxies are trusted.
pub(super) fn find(request: &Request, id: Uuid, trusted: &[IpNet]) -> Source {
    let unknown = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map_or(unknown, |ConnectInfo(address)| address.ip());
    // One that is no text says nothing, and nothing before it is believed.
    let forwarded = request.headers().get_all(FORWARDED_FOR).iter().map(|value| value.to_str().unwrap_or_default());
    Source { address: peers::client(peer, forwarded, trusted), request: id }
}
