from edge_hand import subscribe

for message in subscribe("tcp://127.0.0.1:5555"):
    for hand in message.hands:
        print(message.seq, hand.side, *hand.joints_m[8])  # the index finger's tip, metres in the camera frame
