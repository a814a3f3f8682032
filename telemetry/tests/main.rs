//! A collector inside the test: what is sent arrives, under one trace.

#[cfg(test)]
mod collected;
