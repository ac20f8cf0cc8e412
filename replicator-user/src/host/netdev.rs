//! What XDP can do on each interface: the `netdev` family of generic netlink (`NETDEV_CMD_DEV_GET`, kernel
//! 6.3).

use std::{collections::HashMap, convert::Infallible, io};

use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
        NetlinkPayload, NetlinkSerializable, NlasIterator,
    },
    proto::{
        self,
        sys::{SocketAddr, protocols::NETLINK_GENERIC},
    },
};
use serde::Serialize;

use super::{
    Error,
    netlink::{Task, next_answer},
};

/// `xdp-features` of an interface (`enum netdev_xdp_act` in include/uapi/linux/netdev.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct XdpFeatures {
    /// Native XDP with pass, drop and send-back.
    pub basic: bool,
    /// Native programs may redirect.
    pub redirect: bool,
    /// Redirected frames may leave here (`ndo_xdp_xmit`). Many drivers say so only while a program is
    /// attached.
    pub ndo_xmit: bool,
    /// AF_XDP without copying.
    pub zero_copy: bool,
    /// Programs may run on the device itself.
    pub hw_offload: bool,
    /// Programs may get frames in several buffers.
    pub rx_sg: bool,
    /// Redirected frames in several buffers may leave here.
    pub ndo_xmit_sg: bool,
}

impl XdpFeatures {
    const fn from_bits(bits: u64) -> Self {
        Self {
            basic: bits & 1 != 0,
            redirect: bits & 1 << 1 != 0,
            ndo_xmit: bits & 1 << 2 != 0,
            zero_copy: bits & 1 << 3 != 0,
            hw_offload: bits & 1 << 4 != 0,
            rx_sg: bits & 1 << 5 != 0,
            ndo_xmit_sg: bits & 1 << 6 != 0,
        }
    }
}

/// Message type and attributes of the controller, which knows the ids of the other families.
const CONTROLLER: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// Bytes of `struct genlmsghdr`: command, version, reserved.
const GENERIC_HEADER_BYTES: usize = 4;

/// Bytes of `struct nlattr`: length and type.
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// A generic netlink message: header and attributes as they are on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Generic {
    family: u16,
    bytes: Vec<u8>,
}

impl Generic {
    fn new(family: u16, command: u8, attributes: &[u8]) -> Self {
        let mut bytes = vec![command, 1, 0, 0];
        bytes.extend_from_slice(attributes);
        Self { family, bytes }
    }

    fn attributes(&self) -> impl Iterator<Item = (u16, &[u8])> {
        let attributes = self.bytes.get(GENERIC_HEADER_BYTES..).unwrap_or_default();
        NlasIterator::new(attributes).map_while(Result::ok).map(|attribute| {
            let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
            (kind, attribute.into_inner().get(ATTRIBUTE_HEADER_BYTES..length).unwrap_or_default())
        })
    }
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Generic {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { family: header.message_type, bytes: payload.to_vec() })
    }
}

impl From<Generic> for NetlinkPayload<Generic> {
    fn from(message: Generic) -> Self {
        Self::InnerMessage(message)
    }
}

/// The features of every interface of the calling thread's namespace by ifindex; `None` where the kernel has
/// no such family (before 6.3).
pub(super) async fn xdp_features() -> Result<Option<HashMap<u32, XdpFeatures>>, Error> {
    let (connection, handle, _) = proto::new_connection::<Generic>(NETLINK_GENERIC).map_err(Error::Open)?;
    let _connection = Task::spawn(connection);
    let ask = async |message: Generic, kind: u16| -> Result<Vec<Generic>, Error> {
        const ACTION: &str = "read the XDP features of the interfaces";
        let mut message = NetlinkMessage::from(message);
        // The kernel sends this family's lists without NLM_F_MULTI (genlmsg_iput), and the acknowledgment
        // asked for keeps the connection from taking the first message for all of it.
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | kind;
        let mut answers = handle
            .request(message, SocketAddr::new(0, 0))
            .map_err(|error| Error::refused(ACTION, io::Error::other(error.to_string())))?;
        let mut messages = Vec::new();
        while let Some(answer) = next_answer(ACTION, &mut answers).await? {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message),
                NetlinkPayload::Error(error) => return Err(Error::refused(ACTION, error.to_io())),
                _ => {}
            }
        }
        Ok(messages)
    };

    let name = [&attribute_header(CTRL_ATTR_FAMILY_NAME, 7)[..], b"netdev\0\0"].concat();
    let families = match ask(Generic::new(CONTROLLER, CTRL_CMD_GETFAMILY, &name), 0).await {
        Err(error) if error.is(libc::ENOENT) => return Ok(None),
        other => other?,
    };
    let Some(family) = families.iter().find_map(family_id) else { return Ok(None) };
    let devices = ask(Generic::new(family, NETDEV_CMD_DEV_GET, &[]), NLM_F_DUMP).await?;
    Ok(Some(devices.iter().filter_map(device).collect()))
}

fn attribute_header(kind: u16, value_length: u16) -> [u8; ATTRIBUTE_HEADER_BYTES] {
    let [a, b] = (value_length + ATTRIBUTE_HEADER_BYTES as u16).to_ne_bytes();
    let [c, d] = kind.to_ne_bytes();
    [a, b, c, d]
}

fn family_id(message: &Generic) -> Option<u16> {
    let (_, value) = message.attributes().find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)?;
    Some(u16::from_ne_bytes(value.try_into().ok()?))
}

fn device(message: &Generic) -> Option<(u32, XdpFeatures)> {
    let find = |wanted| message.attributes().find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let ifindex = u32::from_ne_bytes(find(NETDEV_A_DEV_IFINDEX)?.try_into().ok()?);
    let bits = u64::from_ne_bytes(find(NETDEV_A_DEV_XDP_FEATURES)?.try_into().ok()?);
    Some((ifindex, XdpFeatures::from_bits(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_device_is_read_from_its_attributes() {
        let message = Generic {
            family: 30,
            bytes: vec![
                1, 1, 0, 0, // command, version
                8, 0, 1, 0, 7, 0, 0, 0, // ifindex 7
                4, 0, 2, 0, // padding
                12, 0, 3, 0, 0x27, 0, 0, 0, 0, 0, 0, 0, // basic, redirect, ndo-xmit, rx-sg
                12, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, // something newer
            ],
        };
        let features = XdpFeatures {
            basic: true,
            redirect: true,
            ndo_xmit: true,
            rx_sg: true,
            ..XdpFeatures::default()
        };
        assert_eq!(device(&message), Some((7, features)));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn cut_messages_are_left_out() {
        for bytes in [
            &[][..],
            &[1],
            &[1, 1, 0, 0],
            &[1, 1, 0, 0, 8, 0, 1, 0, 7],
            &[1, 1, 0, 0, 8, 0, 1, 0, 7, 0, 0, 0],
        ] {
            assert_eq!(device(&Generic { family: 30, bytes: bytes.to_vec() }), None);
        }
    }
}
