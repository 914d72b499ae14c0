"""The paths of the plugin's own HTTP routes, for the server that answers them and the clients that ask."""

from typing import Final

STATUS_ROUTE: Final = "/sglang_power/status"
FEEDBACK_ROUTE: Final = "/sglang_power/feedback"
