"""From a document on the wire to an answer on the wire: plans, the HTTP endpoint, the socket."""
