//! The virtio PCI transport (virtio 1.2, 4.1).
