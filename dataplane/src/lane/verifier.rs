//! One pair of hands: does a job from beginning to end. The only place of the data plane with curve operations.

use std::net::IpAddr;
use std::sync::Arc;

use ringwire_proto::entropy::Entropy;
use ringwire_proto::frame;
use ringwire_proto::identity::PublicKey;
use ringwire_proto::noise::{Handshake, HandshakeError, Hybrid, Outcome, Pattern, Role};
use ringwire_proto::object::{
    self, Generation, ObjectError, StreamResponse, open_request, open_response, sign_object,
};

use super::{CheckedRequest, Finding, Greeted, Work};
use crate::worker::Identity;

/// See the module's head.
pub struct Verifier {
    identity: Arc<Identity>,
    entropy: Box<dyn Entropy + Send>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

/// Room for message 2 of either kind: 1,139 bytes with its length (dmsg-wire 2.8).
const ANSWER_ROOM: usize = 1280;

impl Verifier {
    /// Hands that act for this server.
    pub fn new(identity: Arc<Identity>, entropy: Box<dyn Entropy + Send>) -> Self {
        Self { identity, entropy }
    }

    /// Does a job.
    pub fn run(&mut self, work: Work) -> Finding {
        match work {
            Work::Greet { frame, hybrid } => Finding::Greeted(self.greet(&frame, hybrid)),
            Work::Prove { handshake, frame } => Finding::Proven(prove(*handshake, &frame)),
            Work::Request { signed, peer, address } => {
                Finding::Request(self.check_request(&signed, &peer, address))
            }
            Work::Response { signed, request_hash, destination } => {
                // All three checks: a refusal is a failed forward and is not passed on (dmsg-wire 10.4).
                Finding::Response(open_response(&signed, &request_hash, &destination).map(|_| ()))
            }
        }
    }

    fn greet(&mut self, frame: &[u8], hybrid: Hybrid) -> Result<Greeted, HandshakeError> {
        let secret = &self.identity.secret_key;
        let entropy = &mut *self.entropy;
        let mut handshake = Handshake::new(Pattern::Xk, Role::Responder, secret, None, hybrid, entropy)?;
        handshake.read_message(message(frame))?;
        let mut body = Vec::with_capacity(ANSWER_ROOM);
        handshake.write_message(&mut body)?;
        let mut answer = Vec::with_capacity(frame::PREFIX_LEN + body.len());
        // Far below what a frame may carry.
        if frame::push_prefix(body.len(), &mut answer).is_err() {
            return Err(HandshakeError::MissingRemote);
        }
        answer.extend_from_slice(&body);
        Ok(Greeted { handshake: Box::new(handshake), answer })
    }

    fn check_request(
        &self,
        signed: &[u8],
        peer: &PublicKey,
        address: IpAddr,
    ) -> Result<CheckedRequest, ObjectError> {
        let request = open_request(signed)?;
        let asks_for_address =
            request.source.key == Some(*peer) && request.is_ip_request_to(&self.identity.public_key);
        Ok(CheckedRequest {
            source: request.source.key,
            destination: request.destination.key,
            answer: asks_for_address.then(|| self.address_answer(signed, address)),
        })
    }

    /// The address a session comes from, signed by us, who are the destination (dmsg-wire 10.6).
    fn address_answer(&self, signed: &[u8], address: IpAddr) -> Vec<u8> {
        let ip = match address.to_canonical() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let response = StreamResponse {
            request_hash: object::object_hash(signed),
            accepted: true,
            ip,
            ..StreamResponse::default()
        };
        sign_object(&self.identity.secret_key, &response.encode(Generation::Go2026))
    }
}

fn prove(mut handshake: Handshake, frame: &[u8]) -> Result<Box<Outcome>, HandshakeError> {
    handshake.read_message(message(frame))?;
    Ok(Box::new(handshake.finish()?))
}

/// The message in a frame.
fn message(frame: &[u8]) -> &[u8] {
    frame.get(frame::PREFIX_LEN..).unwrap_or_default()
}
