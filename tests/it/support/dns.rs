//! A DNS server over UDP with records set by the test.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::{net::UdpSocket, task::JoinHandle};

/// Addresses of each name, with a TTL of one second; `None` for SERVFAIL.
type Names = Arc<Mutex<HashMap<String, Option<Vec<IpAddr>>>>>;

/// A running server. It stops when dropped.
pub struct NameServer {
    pub address: SocketAddr,
    names: Names,
    questions: Arc<Mutex<u64>>,
    task: JoinHandle<()>,
}

impl NameServer {
    pub async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let (names, questions) = (Names::default(), Arc::default());
        let task = tokio::spawn(serve(socket, Arc::clone(&names), Arc::clone(&questions)));
        Self { address, names, questions, task }
    }

    /// Sets the addresses of a name. An empty list means a name without addresses.
    pub fn set(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        self.names.lock().unwrap().insert(name.to_owned(), Some(addresses));
    }

    /// Answers SERVFAIL for this name from now on.
    pub fn fail(&self, name: &str) {
        self.names.lock().unwrap().insert(name.to_owned(), None);
    }

    /// The count of questions received.
    pub fn questions(&self) -> u64 {
        *self.questions.lock().unwrap()
    }

    /// The configuration section that uses this server.
    pub fn section(&self) -> String {
        format!("discovery: {{dns_servers: [\"{}\"]}}\n", self.address)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, names: Names, questions: Arc<Mutex<u64>>) {
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        *questions.lock().unwrap() += 1;
        socket.send_to(&answer(&buffer[..length], &names), from).await.unwrap();
    }
}

/// RFC 1035, 4.1: a header of 12 bytes, the question, the records.
fn answer(question: &[u8], names: &Names) -> Vec<u8> {
    let (mut name, mut at) = (String::new(), 12);
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(&question[at + 1..end]).unwrap());
        at = end;
    }
    let kind = question[at + 2];
    let known = names.lock().unwrap().get(&name.to_ascii_lowercase()).cloned();
    // An unknown name gets NXDOMAIN; a name without addresses gets an empty answer.
    let (code, addresses) = match known {
        Some(Some(addresses)) => (0, addresses),
        Some(None) => (2, Vec::new()),
        None => (3, Vec::new()),
    };
    let records: Vec<Vec<u8>> = addresses
        .iter()
        .filter_map(|address| match (address, kind) {
            (IpAddr::V4(ip), 1) => Some(ip.octets().to_vec()),
            (IpAddr::V6(ip), 28) => Some(ip.octets().to_vec()),
            _ => None,
        })
        .collect();
    let mut out = question[..2].to_vec();
    out.extend([0x85, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    out.extend(&question[12..at + 5]);
    for data in &records {
        // The name of the question by a pointer, class IN, a TTL of one second.
        out.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 1, 0, data.len() as u8]);
        out.extend(data);
    }
    out
}
