"""What every gRPC call shares: authentication, deadlines, validation, paging, replay, and how an error is told."""
