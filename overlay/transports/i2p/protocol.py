"""SAM, the protocol between an I2P router and its clients: replies read, commands written."""
