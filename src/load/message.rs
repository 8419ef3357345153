//! The messages of calls, encoded and decoded by hand where the generated types would copy every field.

use std::{io::Write as _, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint},
};
use uuid::Uuid;

use super::{
    choice::{Chooser, Random},
    outcome::{Kind, Outcome},
    plan::{Call, Plan, Users},
};

/// Messages are written into blocks of this size, so that few of them need memory of their own.
const BLOCK_BYTES: usize = 64 * 1024;
/// The flag and the length in front of each message of gRPC.
const PREFIX_BYTES: usize = 5;

/// From what the threads of a run make their requests.
#[derive(Debug, Clone)]
pub(super) struct RequestTemplate {
    call: Call,
    products: Arc<[String]>,
    product: Chooser,
    /// Absent if each call has a new user.
    user: Option<Chooser>,
    /// Part of the ids of new users, so that those of two runs differ.
    run_id: Arc<str>,
    request_ids: bool,
    ack: i32,
}

impl RequestTemplate {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut run_id = Uuid::new_v4().simple().to_string();
        run_id.truncate(8);
        let user = match plan.users {
            Users::New => None,
            Users::Of { count, choice } => Some(Chooser::new(choice, count)),
        };
        Self {
            call: plan.call,
            products: plan.products.clone().into(),
            product: Chooser::new(plan.product_choice, plan.products.len()),
            user,
            run_id: run_id.into(),
            request_ids: plan.request_ids,
            ack: plan.ack.into(),
        }
    }
}

/// The requests of one thread.
#[derive(Debug)]
pub(super) struct Requests {
    template: RequestTemplate,
    random: Random,
    /// The number of the next new user, and its distance to the one after it: the number of threads.
    next_user: usize,
    user_step: usize,
    block: BytesMut,
    user: Vec<u8>,
}

impl Requests {
    pub(super) fn new(template: RequestTemplate, thread: usize, threads: usize) -> Self {
        let random = Random::seeded(rand::random());
        let (block, user) = (BytesMut::new(), Vec::new());
        Self { template, random, next_user: thread, user_step: threads, block, user }
    }

    /// The next request as it is sent, with its prefix.
    pub(super) fn next(&mut self) -> Bytes {
        if self.template.call == Call::HealthCheck {
            return Bytes::from_static(&[0; PREFIX_BYTES]);
        }
        let product = &self.template.products[self.template.product.choose(&mut self.random)];
        self.user.clear();
        let written = match &self.template.user {
            Some(chooser) => write!(self.user, "user-{}", chooser.choose(&mut self.random)),
            None => {
                let number = self.next_user;
                self.next_user += self.user_step;
                write!(self.user, "{}-{number}", self.template.run_id)
            }
        };
        debug_assert!(written.is_ok(), "writing to memory");
        let random = [self.random.next(), self.random.next()];
        let request_id = self.template.request_ids.then(|| {
            let random = u128::from(random[0]) << 64 | u128::from(random[1]);
            uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid()
        });
        let most = PREFIX_BYTES + product.len() + self.user.len() + 64;
        if self.block.capacity() < most {
            self.block.reserve(most.max(BLOCK_BYTES));
        }
        self.block.put_bytes(0, PREFIX_BYTES);
        put_text(&mut self.block, 1, product.as_bytes());
        put_text(&mut self.block, 2, &self.user);
        if let Some(request_id) = request_id {
            let mut text = Uuid::encode_buffer();
            put_text(
                &mut self.block,
                3,
                request_id.hyphenated().encode_lower(&mut text).as_bytes(),
            );
        }
        if self.template.ack != 0 {
            prost::encoding::int32::encode(4, &self.template.ack, &mut self.block);
        }
        let mut message = self.block.split();
        let length = u32::try_from(message.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
        message[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
        message.freeze()
    }
}

fn put_text(block: &mut BytesMut, tag: u32, text: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, block);
    encode_varint(text.len() as u64, block);
    block.put_slice(text);
}

/// What is read of a `ReserveUnitResponse`; the other fields are skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct ReserveUnitFlags {
    #[prost(bool, tag = "3")]
    duplicate: bool,
}

/// As [`ReserveUnitFlags`], with the reservation id.
#[derive(Clone, PartialEq, prost::Message)]
struct ReserveUnitIds {
    #[prost(message, optional, tag = "1")]
    reservation: Option<ReservationIdOnly>,
    #[prost(bool, tag = "3")]
    duplicate: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReservationIdOnly {
    #[prost(string, tag = "1")]
    reservation_id: String,
}

/// Reads the messages of successful answers.
#[derive(Debug)]
pub(super) struct Responses {
    call: Call,
    keep_ids: bool,
    ok: Outcome,
    accepted: Outcome,
    duplicate: Outcome,
    unreadable: Outcome,
}

impl Responses {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            call: plan.call,
            keep_ids: plan.keep_accepted_ids,
            ok: Outcome::new(Kind::Succeeded, "ok"),
            accepted: Outcome::new(Kind::Succeeded, "accepted"),
            duplicate: Outcome::new(Kind::Succeeded, "duplicate"),
            unreadable: Outcome::new(Kind::Failed, "unreadable answer"),
        }
    }

    /// The outcome of an answer with status OK, and the reservation id if ids are kept and it was accepted.
    pub(super) fn read(&self, body: &[u8]) -> (Outcome, Option<String>) {
        if self.call == Call::HealthCheck {
            return (self.ok.clone(), None);
        }
        match self.decode(body) {
            Some((true, _)) => (self.duplicate.clone(), None),
            Some((false, id)) => (self.accepted.clone(), id),
            None => (self.unreadable.clone(), None),
        }
    }

    fn decode(&self, body: &[u8]) -> Option<(bool, Option<String>)> {
        // Requests do not offer to read a compressed answer.
        let (prefix, message) = body.split_at_checked(PREFIX_BYTES)?;
        let length = u32::try_from(message.len()).ok()?;
        if prefix[0] != 0 || prefix[1..] != length.to_be_bytes() {
            return None;
        }
        if !self.keep_ids {
            return Some((ReserveUnitFlags::decode(message).ok()?.duplicate, None));
        }
        let answer = ReserveUnitIds::decode(message).ok()?;
        Some((answer.duplicate, Some(answer.reservation?.reservation_id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        grpc::pb::{self, Reservation, ReserveUnitRequest, ReserveUnitResponse},
        load::Choice,
    };

    fn requests(change: impl FnOnce(&mut Plan)) -> Requests {
        let mut plan = Plan::new("127.0.0.1:1", ["hat", "shoe"]);
        change(&mut plan);
        Requests::new(RequestTemplate::new(&plan), 1, 2)
    }

    fn decode(message: &Bytes) -> ReserveUnitRequest {
        let length = u32::from_be_bytes(message[1..5].try_into().unwrap());
        assert_eq!((message[0], length as usize), (0, message.len() - 5));
        ReserveUnitRequest::decode(&message[5..]).unwrap()
    }

    #[test]
    fn request_decodes_as_the_generated_type() {
        let mut requests = requests(|plan| {
            plan.product_choice = Choice::Hot;
            plan.ack = pb::Ack::Ledger;
        });
        let (first, second) = (decode(&requests.next()), decode(&requests.next()));
        assert_eq!((first.product_id.as_str(), first.ack()), ("hat", pb::Ack::Ledger));
        assert!(first.user_id.ends_with("-1") && second.user_id.ends_with("-3"), "{first:?}");
        assert_ne!(first.request_id, second.request_id);
        assert_eq!(first.request_id.parse::<Uuid>().unwrap().get_version_num(), 4);
    }

    #[test]
    fn request_has_no_request_id_and_a_user_of_the_given_ones_if_the_plan_says_so() {
        let mut requests = requests(|plan| {
            plan.request_ids = false;
            plan.users = Users::Of { count: 1, choice: Choice::Uniform };
        });
        let request = decode(&requests.next());
        assert_eq!((request.request_id.as_str(), request.user_id.as_str()), ("", "user-0"));
        assert_eq!(request.ack(), pb::Ack::Unspecified);
    }

    #[test]
    fn requests_are_intact_over_many_blocks() {
        let mut requests = requests(|plan| plan.products = vec!["x".repeat(128)]);
        let messages: Vec<Bytes> = (0..5_000).map(|_| requests.next()).collect();
        for message in messages {
            assert_eq!(decode(&message).product_id.len(), 128);
        }
    }

    #[test]
    fn empty_call_sends_an_empty_message() {
        assert_eq!(requests(|plan| plan.call = Call::HealthCheck).next(), vec![0; 5]);
    }

    fn answer(duplicate: bool) -> Vec<u8> {
        let reservation = Reservation { reservation_id: "r1".to_owned(), ..Default::default() };
        let answer =
            ReserveUnitResponse { reservation: Some(reservation), remaining: 7, duplicate };
        let message = answer.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap();
        [&[0][..], &length.to_be_bytes(), &message].concat()
    }

    #[test]
    fn answer_is_accepted_or_a_duplicate_and_its_id_is_kept_on_demand() {
        let mut plan = Plan::new("127.0.0.1:1", ["shoe"]);
        let read = |plan: &Plan, body: &[u8]| {
            let (outcome, id) = Responses::new(plan).read(body);
            (outcome.name.to_string(), id)
        };
        assert_eq!(read(&plan, &answer(false)), ("accepted".to_owned(), None));
        assert_eq!(read(&plan, &answer(true)), ("duplicate".to_owned(), None));
        plan.keep_accepted_ids = true;
        assert_eq!(read(&plan, &answer(false)), ("accepted".to_owned(), Some("r1".to_owned())));
        assert_eq!(read(&plan, &answer(true)), ("duplicate".to_owned(), None));
        for body in [&[][..], &[0, 0, 0, 0], &answer(false)[..9], &[1, 0, 0, 0, 0]] {
            assert_eq!(read(&plan, body).0, "unreadable answer", "{body:?}");
        }
    }
}
