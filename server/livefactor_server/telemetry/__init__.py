"""What a server reports of its calls: figures, and lines of its log.

Every call has a *request id*. It is the metadata `x-request-id` of the call, or it is made by the
server. The trailing metadata of the answer has it too, so that a client can name a call in a
complaint, and the operator finds its line.

Which calls have a line: with the log level `debug` all, else those that change models or that the
server refused. Of the refused ones at most REFUSED_A_SECOND_MAX a second have a line. The next line
says how many had none.
"""
