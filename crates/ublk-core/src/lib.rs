//! Pure and safe ublk logic: ids, limits, parameters, negotiation, geometry, the tag machine, the backend trait.
