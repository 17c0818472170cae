//! What a client wants of the server itself: the liveness ping, its own address, and a lie about its key that must be
//! refused (dmsg-wire 10.5, 10.6, 11.4). Each is one short stream, answered and then finished by the server.

use ringwire_proto::identity::SecretKey;
use ringwire_proto::object::{
    Generation, PING_MARKER, RawAddress, StreamRequest, object_hash, open_response, sign_object,
};

use super::{Context, Peer, Stage};
use crate::plan::Errand;

/// An errand on its stream.
pub(super) struct ErrandState {
    errand: Errand,
    /// Bytes the multiplexer did not take yet.
    outbox: Vec<u8>,
    inbox: Vec<u8>,
    /// Hash of the request, if there is one.
    hash: [u8; 32],
    is_over: bool,
}

impl Peer {
    /// Begins what is due and goes on with what is under way.
    pub(super) fn run_errands(&mut self, context: &mut Context<'_>) {
        self.begin_errands(context);
        let (is_healthy, peer, server) = (self.is_healthy, self.index, self.server);
        let Stage::Open(open) = &mut self.stage else { return };
        let streams: Vec<u32> = open.errands.keys().copied().collect();
        for stream in streams {
            let Some(mut state) = open.errands.remove(&stream) else { continue };
            while !state.outbox.is_empty() {
                let Ok(taken) = open.mux.write(stream, &state.outbox) else { break };
                state.outbox.drain(..taken);
            }
            let mut buffer = [0; 512];
            while !state.is_over {
                match open.mux.read(stream, &mut buffer) {
                    Ok(0) => state.is_over = true,
                    Ok(len) => state.inbox.extend_from_slice(&buffer[..len]),
                    Err(_) => break,
                }
            }
            let now = context.now;
            if state.is_over {
                let answered = match state.errand {
                    Errand::Ping => state.inbox == PING_MARKER,
                    Errand::LieAboutSource => state.inbox.is_empty(),
                    Errand::AskForAddress => {
                        let packet = state.inbox.get_mut(2..).unwrap_or_default();
                        let signed =
                            open.opener.open(packet).map(|signed| signed.to_vec()).unwrap_or_default();
                        open_response(&signed, &state.hash, &server)
                            .is_ok_and(|response| response.ip == [10, 0, 0, 1 + peer as u8])
                    }
                };
                // Refused for lack of memory is an answer too, when memory is short.
                if !answered && !context.ledger.plan.is_tight {
                    let errand = state.errand;
                    context.ledger.fail(now, format!("peer {peer}: {errand:?} got a wrong answer"));
                }
                open.mux.finish(now, stream);
            } else if context.ledger.is_quiescing {
                if is_healthy && !context.ledger.plan.is_tight {
                    let errand = state.errand;
                    context.ledger.fail(now, format!("peer {peer}: {errand:?} was never answered"));
                }
                open.mux.close(now, stream);
            } else {
                open.errands.insert(stream, state);
            }
        }
    }

    fn begin_errands(&mut self, context: &Context<'_>) {
        let Stage::Open(open) = &mut self.stage else { return };
        while let Some((at, errand)) = self.plan.errands.last().copied().filter(|(at, _)| *at <= context.now)
        {
            let Ok(stream) = open.mux.open(context.now) else { return };
            self.plan.errands.pop();
            let mut state =
                ErrandState { errand, outbox: Vec::new(), inbox: Vec::new(), hash: [0; 32], is_over: false };
            let mut request = StreamRequest {
                timestamp_ns: 1 + at as i64,
                source: RawAddress { key: Some(self.key), port: 49_153 },
                destination: RawAddress { key: Some(self.server), port: 1 },
                ip_info: true,
                geo_info: false,
                noise_message: Vec::new(),
            };
            match errand {
                Errand::Ping => state.outbox.extend_from_slice(&PING_MARKER),
                Errand::AskForAddress => {}
                Errand::LieAboutSource => {}
            }
            let mut author = self.secret.clone();
            if errand == Errand::LieAboutSource {
                // A valid request of somebody else.
                author = SecretKey::generate(&mut self.entropy);
                request.source.key = Some(author.public_key());
            }
            if errand != Errand::Ping {
                let signed = sign_object(&author, &request.encode(Generation::Go2026));
                state.hash = object_hash(&signed);
                open.seal(&signed, &mut state.outbox);
            }
            open.errands.insert(stream, state);
        }
    }
}
