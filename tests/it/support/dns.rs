//! A name server: answers what the test says, by UDP.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::{net::UdpSocket, task::JoinHandle};

/// What it says of a name: addresses, for a second; or that it has failed.
type Names = Arc<Mutex<HashMap<String, Option<Vec<IpAddr>>>>>;

/// A running server. It stops when dropped.
pub struct NameServer {
    pub address: SocketAddr,
    names: Names,
    asked: Arc<Mutex<u64>>,
    task: JoinHandle<()>,
}

impl NameServer {
    pub async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let (names, asked) = (Names::default(), Arc::default());
        let task = tokio::spawn(serve(socket, Arc::clone(&names), Arc::clone(&asked)));
        Self { address, names, asked, task }
    }

    /// Says from now on that a name has these addresses. None: it has no address.
    pub fn set(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        self.names.lock().unwrap().insert(name.to_owned(), Some(addresses));
    }

    /// Says from now on that it cannot say anything of a name.
    pub fn fail(&self, name: &str) {
        self.names.lock().unwrap().insert(name.to_owned(), None);
    }

    /// Questions that have come.
    pub fn asked(&self) -> u64 {
        *self.asked.lock().unwrap()
    }

    /// The section of a configuration that asks here.
    pub fn section(&self) -> String {
        format!("discovery: {{dns_servers: [\"{}\"]}}\n", self.address)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, names: Names, asked: Arc<Mutex<u64>>) {
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        *asked.lock().unwrap() += 1;
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
    // A name that is not known does not exist; one without addresses has no records.
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
        // The name is that of the question; class IN, for one second.
        out.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 1, 0, data.len() as u8]);
        out.extend(data);
    }
    out
}
