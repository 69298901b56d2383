"""What lives as long as the process: upstreams, snapshots, reload, watching."""
