//! Neither end takes memory for a frame.

use std::{net::Ipv4Addr, time::Duration};

use replicator_common::bier::{BiftId, BitStringLength};
use replicator_user::client::{
    Destinations, Dispatcher, DispatcherSettings, Receiver, ReceiverSettings, Source, Transport,
};

#[test]
fn frames_are_sent_and_received_without_taking_memory() {
    let source = Source::Udp { bind: (Ipv4Addr::LOCALHOST, 0).into(), share: false };
    let mut receiver = Receiver::open(&source, &ReceiverSettings::default()).unwrap();
    receiver.set_timeout(Some(Duration::from_secs(5)));
    let transport = Transport::Udp { to: receiver.local_address().unwrap(), interface: None };
    let settings = DispatcherSettings::new(BiftId::expert(1, 1).unwrap(), BitStringLength::B1024, 0);
    let mut dispatcher = Dispatcher::open(&transport, &settings).unwrap();
    let payload = vec![1; dispatcher.max_payload()];

    let taken = allocation_counter::measure(|| {
        for round in 0..3 {
            for number in 0..100 {
                let payload = &payload[..payload.len() - number * round];
                dispatcher.dispatch(Destinations::Experts(&[1, 17, 1023]), 0, payload).unwrap();
            }
            dispatcher.flush().unwrap();
            for _ in 0..100 {
                assert_eq!(receiver.receive().unwrap().unwrap().experts().sum::<u32>(), 1041);
            }
        }
    });
    assert_eq!(taken.count_total, 0);
}
