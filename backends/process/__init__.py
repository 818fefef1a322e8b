"""Any program in any language as a backend, by the protocol of docs/protocol.md."""
